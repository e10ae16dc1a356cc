"""`zerotir weights`: what people see of the log, and a version as a checkpoint that transformers loads."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from bus.address import BusAddress
from bus.connection import Bus, open_bus
from bus.messages import WeightVersion
from bus.presence import Announcer
from configs.bus import BusConfig, WeightsConfig
from configs.loading import dump_config, load_config
from launch.weights_command import _show
from runtime.models import model_folder
from tests.processes import zerotir
from weights.codec import Layout, WeightsError
from weights.writer import WeightWriter


@pytest.fixture
async def bus(own_run: BusAddress) -> AsyncIterator[Bus]:
    async with open_bus(own_run, BusConfig(timeout_s=5), "test") as bus:
        yield bus


@pytest.fixture
async def run(bus: Bus, own_run: BusAddress, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run whose log has three versions: the model's own weights, then twice as large, then three times."""
    monkeypatch.setenv("ZEROTIR_CACHE", str(tmp_path / "cache"))
    own_run.write(tmp_path / "bus.json")
    (tmp_path / "config.yaml").write_text(dump_config(load_config("tiny")))
    model = AutoModelForCausalLM.from_pretrained(model_folder("random-tiny"), dtype=torch.float32)
    weights = [(name, parameter.detach()) for name, parameter in model.named_parameters()]
    layout = Layout.of([(name, "float32", tuple(weight.shape), weight.nbytes) for name, weight in weights])
    writer = WeightWriter(bus, WeightsConfig())
    await writer.open()
    for n in range(3):
        state = writer.spare_state(layout)
        image = torch.from_numpy(state.image)
        for entry, (_, weight) in zip(layout.tensors, weights, strict=True):
            image[entry.offset : entry.offset + entry.nbytes].copy_(((n + 1) * weight).reshape(-1).view(torch.uint8))
        await writer.publish(n, state)
    return tmp_path


async def test_versions_sizes_and_the_lag_of_actors_are_listed(run: Path, bus: Bus, capsys: pytest.CaptureFixture[str]):
    behind, new = Announcer(bus, "actor", "slow"), Announcer(bus, "actor", "new")
    behind.version = str(WeightVersion(epoch=0, n=1))
    await behind.announce()
    await new.announce()
    await _show(run, None)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[1:4]] == [["0.0", "snapshot"], ["0.1", "delta"], ["0.2", "delta"]]
    assert "3 manifests" in lines[4]
    assert any("slow" in line and "1 behind" in line for line in lines)
    assert any("new" in line and "no weights yet" in line for line in lines)


@pytest.mark.parametrize(("version", "factor"), [("0.1", 2), ("newest", 3), ("0.0", 1)])
async def test_a_version_is_exported_as_a_checkpoint(run: Path, version: str, factor: int):
    folder = run / "exported"
    await _show(run, (version, str(folder)))
    exported = AutoModelForCausalLM.from_pretrained(folder)
    base = AutoModelForCausalLM.from_pretrained(model_folder("random-tiny"), dtype=torch.float32)
    for ours, theirs in zip(exported.parameters(), base.parameters(), strict=True):
        assert torch.equal(ours, factor * theirs)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.decode(tokenizer.encode("1+1=2")) == "1+1=2"


@pytest.mark.parametrize("version", ["0.7", "first", "1"])
async def test_a_version_that_is_not_there_is_named(run: Path, version: str):
    with pytest.raises(WeightsError, match=version.replace(".", r"\.")):
        await _show(run, (version, str(run / "exported")))
    assert not (run / "exported").exists()


def test_a_folder_without_a_run_is_explained(tmp_path: Path):
    done = zerotir("weights", str(tmp_path))
    assert done.returncode == 2
    assert "zerotir up" in done.stderr
    assert "Traceback" not in done.stderr
