"""Names of runs and processes have one rule; the folders in which they lie have none."""

import sys
from pathlib import Path

import pytest

from bus.address import BusAddress
from bus.connection import open_bus
from bus.server import embedded_server
from configs.bus import BusConfig
from launch.cli import command
from tests.processes import zerotir

BAD = ["a.b", "*", ">", "é", "a b", "", "x" * 65, "a\n", "host.example.org", "a/b"]


@pytest.mark.parametrize("name", BAD)
def test_a_process_s_name_that_breaks_the_rule_is_a_mistake(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("sys.argv", ["zerotir", "actor", "tiny", "--id", name])
    with pytest.raises(SystemExit) as ended:
        sys.exit(command())
    assert ended.value.code == 2
    assert "is no name of a process: letters (a to z), digits, - and _, 64 at most" in capsys.readouterr().err


def test_a_folder_whose_name_cannot_be_a_run_s_id_is_a_mistake(tmp_path: Path):
    ended = zerotir("bus", "tiny", "--folder", str(tmp_path / "my.run"))
    assert ended.returncode == 2
    assert "its name becomes the run's id: letters" in ended.stdout + ended.stderr
    assert not (tmp_path / "my.run" / "bus.json").exists()


@pytest.mark.parametrize("name", ["ü 数", 'a "quoted" one', "b\\s", "$HOME", "#x", "{y}", "it's"])
async def test_a_run_s_folder_may_lie_anywhere(tmp_path: Path, name: str):
    folder = tmp_path / name / "run"
    config = BusConfig(timeout_s=10)
    async with embedded_server(folder / "nats", config, "run") as (address, _), open_bus(address, config, "bus"):
        address.write_all(folder)
    assert (folder / "nats" / "store" / "jetstream").is_dir()
    assert BusAddress.read(folder / "bus.json") == address
