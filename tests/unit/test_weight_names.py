"""Every parameter of an engine's model is accounted for, by its name."""

import pytest

from actors.weight_names import require_all_loaded, require_same_names

PACKED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}
PARAMETERS = ["embed.weight", "layers.0.attn.qkv_proj.weight", "layers.0.attn.qkv_proj.bias", "layers.0.mlp.up.weight"]
WEIGHTS = [
    "embed.weight",
    *(f"layers.0.attn.{part}_proj.{kind}" for part in "qkv" for kind in ("weight", "bias")),
    "layers.0.mlp.up.weight",
]


def test_joined_parameters_have_all_of_their_weights():
    require_same_names(PARAMETERS, PACKED, WEIGHTS)
    # Stored joined, as Phi-3 is.
    require_same_names(["a.qkv_proj.weight"], {"qkv_proj": ["qkv_proj"]}, ["a.qkv_proj.weight"])


@pytest.mark.parametrize("left_out", WEIGHTS)
def test_a_weight_that_is_missing_is_named(left_out: str):
    with pytest.raises(ValueError, match=rf"sent no weights for {left_out} of the engine's model: .*model\.path"):
        require_same_names(PARAMETERS, PACKED, [name for name in WEIGHTS if name != left_out])


def test_a_weight_that_fits_nothing_is_named():
    with pytest.raises(ValueError, match=r"no place for lm_head.weight of the learner's: .*model\.path"):
        require_same_names(PARAMETERS, PACKED, [*WEIGHTS, "lm_head.weight"])


def test_many_names_are_counted():
    with pytest.raises(ValueError, match=r"a0, a1, a2 and 7 more of"):
        require_same_names([f"a{number}" for number in range(10)], {}, [])


def test_what_the_loader_left_out_is_named():
    require_all_loaded(PARAMETERS, {*PARAMETERS, "more"})
    with pytest.raises(ValueError, match=r"loaded nothing into layers.0.mlp.up.weight"):
        require_all_loaded(PARAMETERS, PARAMETERS[:-1])
    with pytest.raises(ValueError, match="does not say"):
        require_all_loaded(PARAMETERS, None)
