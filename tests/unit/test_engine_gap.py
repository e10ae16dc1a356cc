"""Engines are held against the learner on what both computed with the same weights, and on nothing else."""

import math
import re

import numpy as np
import pytest
import torch

from bus.messages import Trajectory, WeightVersion
from configs.loading import load_config
from learner.training.engine_gap import EngineCheck, EngineGapError, gap_bound
from tests.factories import spans, trajectory

TOKENS = 300
"""Of one trajectory: enough to judge an engine by."""


def sampled(actor: str = "a", version: int = 4, tokens: int = TOKENS, inserted: int = 0) -> Trajectory:
    mask = np.ones(tokens, np.uint8)
    mask[:inserted] = 0
    return trajectory(2, tokens, mask=mask, actor=actor, versions=spans((version, 0, tokens)))


def measure(check: EngineCheck, *pairs: tuple[Trajectory, float], version: int = 4) -> dict[str, float]:
    """Measures trajectories, each token of which the learner finds so much more likely than the engine did."""
    logprobs = {
        index: torch.full((int(item.loss_mask.sum()),), -1.0 + apart) for index, (item, apart) in enumerate(pairs)
    }
    return check.measure([item for item, _ in pairs], logprobs, frozenset({WeightVersion(epoch=0, n=version)}))


def test_the_gap_is_the_mean_over_sampled_tokens_without_staleness():
    check = EngineCheck(10.0)
    # 100 sampled tokens that are 0.3 apart and 300 that are 0.1 apart, on either side.
    values = measure(check, (sampled(tokens=150, inserted=50), 0.3), (sampled("b"), -0.1))
    assert values["engine_gap"] == pytest.approx((100 * 0.3 + 300 * 0.1) / 400)
    # Older weights, and weights that changed on the way: nothing is known of them.
    mixed = trajectory(2, TOKENS, versions=spans((3, 0, 10), (4, 10, TOKENS)))
    assert measure(check, (sampled(version=3), 5.0), (mixed, 5.0)) == {}
    assert measure(check) == {}


def test_another_epochs_weights_of_the_same_number_are_other_weights():
    check = EngineCheck(0.2)
    assert measure(check, (sampled().model_copy(update={"versions": spans((4, 0, TOKENS), epoch=1)}), 5.0)) == {}
    # Unless the log says that they are the same.
    same = frozenset({WeightVersion(epoch=0, n=4), WeightVersion(epoch=1, n=4)})
    batch = [sampled(), sampled().model_copy(update={"versions": spans((4, 0, TOKENS), epoch=1)})]
    assert check.measure(batch, {n: torch.full((TOKENS,), -1.1) for n in (0, 1)}, same)["engine_gap"] == pytest.approx(
        0.1
    )
    with pytest.raises(EngineGapError, match=r"on version 1\.4"):
        check.measure(batch, {n: torch.full((TOKENS,), -1.3) for n in (0, 1)}, same)


def test_an_actor_with_few_tokens_is_no_witness():
    with pytest.raises(EngineGapError, match="have not agreed in this process yet"):
        measure(EngineCheck(0.2), (sampled("a"), 1.0), (sampled("b", tokens=10), 0.0))


def test_a_mean_beyond_the_bound_ends_training():
    check = EngineCheck(0.2)
    measure(check, (sampled(), 0.19))
    with pytest.raises(
        EngineGapError, match=r"on version 0.4: .* are 0\.21 apart at the mean of 300 tokens, at most 0\.2 "
    ):
        measure(check, (sampled(), 0.21))
    with pytest.raises(EngineGapError, match="nan apart"):
        measure(check, (sampled(), math.nan))


def test_one_engine_of_several_is_named_although_the_others_hide_it():
    check = EngineCheck(0.2)
    batch = [(sampled(name), 0.001) for name in "abcdefgh"]
    measure(check, *batch)
    expected = "it is the engines of d: the learner agrees with 7 other actors"
    with pytest.raises(EngineGapError, match=re.escape(expected)):
        measure(check, *(pair if pair[0].actor != "d" else (pair[0], 0.7) for pair in batch))


def test_the_last_agreement_is_told():
    check = EngineCheck(0.2)
    with pytest.raises(EngineGapError, match="have not agreed in this process yet"):
        measure(check, (sampled(), 0.5))
    measure(check, (sampled(), 0.0))
    with pytest.raises(EngineGapError, match=r"last agreed at version 0\.4"):
        measure(check, (sampled(version=5), 0.5), version=5)


def test_few_tokens_show_nothing_alone_and_something_together():
    check = EngineCheck(0.2)
    few = [(sampled(name, tokens=100), 0.5) for name in "abc"]
    assert measure(check, *few[:2])["engine_gap"] == pytest.approx(0.5)
    with pytest.raises(EngineGapError, match="mean of 300 tokens"):
        measure(check, *few)


@pytest.mark.parametrize(
    ("overrides", "bound"),
    [
        (["model.dtype=float32"], 0.005),
        (["model.dtype=bfloat16"], 0.2),
        (["model.dtype=bfloat16", "model.compute_dtype=float32"], 0.005),
        (["learner.max_engine_gap=0.1"], 0.1),
        (["learner.max_engine_gap=null"], None),
        (["actor.engine.kind=emulated"], None),
    ],
)
def test_the_bound_follows_from_what_is_computed_in(overrides: list[str], bound: float | None):
    assert gap_bound(load_config("tiny", overrides)) == bound


def test_without_a_bound_the_gap_is_measured_only():
    assert measure(EngineCheck(None), (sampled(), 3.0))["engine_gap"] == pytest.approx(3.0)
