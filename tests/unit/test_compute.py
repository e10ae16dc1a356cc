"""What is computed in: as the configuration says, else as was measured."""

from pathlib import Path

import pytest
import torch
from structlog.testing import capture_logs

from configs.errors import UserError
from configs.loading import load_config
from configs.schema import ModelConfig
from configs.training import CheckpointConfig
from launch.replay_command import as_it_computed
from learner.checkpoints import Checkpoints
from runtime import compute
from runtime.compute import MARGIN, SWITCH, compute_dtype


@pytest.fixture(autouse=True)
def switch(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Without the switch that the whole suite may be run with."""
    monkeypatch.delenv(SWITCH, raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    ("dtype", "chosen", "on_cpu", "expected"),
    [
        ("bfloat16", "float32", True, "float32"),
        ("bfloat16", "float32", False, "float32"),
        ("bfloat16", "bfloat16", True, "bfloat16"),
        ("bfloat16", "auto", False, "bfloat16"),
        ("float32", "auto", False, "float32"),
        ("float32", "auto", True, "float32"),
    ],
)
def test_nothing_is_measured_where_nothing_is_to_choose(
    dtype: str, chosen: str, on_cpu: bool, expected: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delattr(compute, "_gflops")
    model = ModelConfig(path="any", dtype=dtype, compute_dtype=chosen)
    assert compute_dtype(model, on_cpu=on_cpu) == expected


@pytest.mark.parametrize(
    ("gflops", "expected"),
    [(90 * MARGIN + 1, "bfloat16"), (90 * MARGIN - 1, "float32"), (13.0, "float32")],
)
def test_a_cpu_computes_in_what_is_clearly_faster(gflops: float, expected: str, monkeypatch: pytest.MonkeyPatch):
    speed = {"float32": 90.0, "bfloat16": gflops}
    monkeypatch.setattr(compute, "_gflops", lambda dtype: speed[dtype])
    assert compute_dtype(ModelConfig(path="any"), on_cpu=True) == expected


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_switch_stands_for_the_measurement_and_for_nothing_else(dtype: str, switch: pytest.MonkeyPatch):
    switch.delattr(compute, "_gflops")
    switch.setenv(SWITCH, dtype)
    assert compute_dtype(ModelConfig(path="any"), on_cpu=True) == dtype
    assert compute_dtype(ModelConfig(path="any"), on_cpu=False) == "bfloat16"
    assert compute_dtype(ModelConfig(path="any", dtype="float32"), on_cpu=True) == "float32"
    assert compute_dtype(ModelConfig(path="any", compute_dtype="float32"), on_cpu=True) == "float32"


def test_a_switch_that_names_no_type_is_refused(switch: pytest.MonkeyPatch):
    switch.setenv(SWITCH, "bf16")
    with pytest.raises(UserError, match="ZEROTIR_CPU_DTYPE is 'bf16': bfloat16 and float32 are possible"):
        compute_dtype(ModelConfig(path="any"), on_cpu=True)


def test_the_measurement_is_made_and_told():
    with capture_logs() as logs:
        chosen = compute_dtype(ModelConfig(path="any"), on_cpu=True)
    (line,) = logs
    assert line["chosen"] == chosen
    assert min(line["float32_gflops"], line["bfloat16_gflops"]) > 0


def test_weights_are_not_computed_in_a_coarser_type():
    with pytest.raises(ValueError, match="compute_dtype"):
        ModelConfig(path="any", dtype="float32", compute_dtype="bfloat16")


@pytest.mark.parametrize(("chosen", "expected"), [("auto", "bfloat16"), ("float32", "float32")])
def test_a_replay_computes_as_the_run_did(chosen: str, expected: str, tmp_path: Path):
    threads = torch.get_num_threads()
    state = {"threads": threads + 1, "compute_dtype": "bfloat16"}
    Checkpoints(tmp_path / "checkpoints", CheckpointConfig()).write(3, lambda folder: None, state, {})
    config = load_config("quickstart", [f"model.compute_dtype={chosen}"])
    try:
        assert as_it_computed(config, tmp_path).model.compute_dtype == expected
        assert torch.get_num_threads() == threads + 1
    finally:
        torch.set_num_threads(threads)


def test_a_replay_without_a_checkpoint_measures(tmp_path: Path):
    config = load_config("quickstart")
    assert as_it_computed(config, tmp_path) == config
