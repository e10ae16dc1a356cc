"""`zerotir up` with trackers: they have the whole run, also over a resume, and one that is broken costs the run nothing."""

import asyncio
import os
from pathlib import Path

import pytest

from bus.address import BusAddress
from bus.connection import open_bus
from bus.metrics import MetricsWriter, steps_of
from bus.run_record import record_config, record_end
from configs.bus import BusConfig
from configs.loading import load_config
from tests import tracked
from tests.integration.test_emulated_run import start
from tests.processes import ZEROTIR, processes_of, words_of
from tracking.worker import POSITION


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, value in tracked.environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    # MLflow keeps files beside where it is started.
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_trackers_have_the_whole_run_and_its_transcripts_over_a_resume(home: Path):
    names = ["tensorboard", "wandb", "trackio", "mlflow"]
    up, output = start(home, "learner.steps=4", f"launch.trackers={names}")
    assert up.wait(timeout=200) == 0, words_of(output)
    [folder] = (home / "runs").glob("emulated-*")
    up, again = start(home, "learner.steps=6", resume=folder)
    assert up.wait(timeout=200) == 0, words_of(again)
    measured = [(record["step"], round(record["accuracy"], 6)) for record in steps_of(folder)]
    assert [step for step, _ in measured] == [1, 2, 3, 4, 5, 6]
    for name in names:
        found = tracked.read(folder, name)
        assert found.points["learner/accuracy"] == measured, name
        assert found.steps == 6, name
        assert "actor/actor-1/tokens_per_s" in found.points, name
        assert all("EMULATED" in text for text in found.transcripts), name
        for step in range(1, 7):
            assert any(f"step {step}" in text for text in found.transcripts), (name, step)
    for text in (output.read_text(), again.read_text()):
        assert f"tensorboard --logdir {folder}/trackers/tensorboard" in text
        assert "has not taken everything" not in text
    assert processes_of(home) == []


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_tracker_that_cannot_work_costs_the_run_nothing(home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", "")
    up, output = start(home, "learner.steps=60", "launch.trackers=[mlflow,wandb]")
    assert up.wait(timeout=300) == 0, words_of(output)
    text = output.read_text()
    assert "track-wandb ended with exit status 2: UserError: W&B does not take the run" in text
    assert "training goes on without it. Once that is mended: zerotir track " in text
    assert "track-mlflow ended with exit status 1: TrackerError: MLflow: " in text
    assert "training goes on, and it is started again in 10 s" in text
    assert "it has not taken everything. Later: zerotir track " in text
    assert "restarts in a row" not in text
    [folder] = (home / "runs").glob("emulated-*")
    assert len(steps_of(folder)) == 60
    assert processes_of(home) == []
    # Once it is mended, by hand.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home}/mlflow.db")
    from tests.integration.test_trackers import track

    done = track(folder, "mlflow")
    assert done.returncode == 0, done.stderr
    assert len(tracked.read(folder, "mlflow").points["learner/accuracy"]) == 60


@pytest.mark.slow
@pytest.mark.timeout(100)
def test_a_tracker_whose_package_is_absent_is_refused_before_anything_starts(home: Path):
    absent = home / "absent"
    absent.mkdir()
    # As where it is not installed: nothing of that name can be found.
    (absent / "sitecustomize.py").write_text(
        "import importlib.util as u\n"
        "found = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'trackio' else found(name, *rest)\n"
    )
    os.environ["PYTHONPATH"] = str(absent)
    try:
        up, output = start(home, "launch.trackers=[trackio]")
        assert up.wait(timeout=60) == 2
    finally:
        del os.environ["PYTHONPATH"]
    assert (
        "the tracker trackio needs the package trackio, which is not installed: `pip install 'zerotir[trackio]'`"
        in (output.read_text())
    )
    assert not (home / "runs").exists()


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", tracked.READERS)
async def test_nothing_is_lost_when_a_tracker_is_killed(own_run: BusAddress, home: Path, name: str):
    """Whatever its library had not written out yet is given again."""
    steps, folder = 400, home / own_run.run
    folder.mkdir()
    own_run.write(folder / "bus.json")
    async with open_bus(own_run, BusConfig(timeout_s=5), "bus") as bus:
        await record_config(bus, load_config("tiny", [f"learner.steps={steps}"]))
        writer = MetricsWriter(bus, "learner", "learner")
        for step in range(1, steps + 1):
            await writer.write({f"m{number}": step / 8 for number in range(20)}, step=step)
        await bus.client.flush()
        for kill in (True, False):
            following = await asyncio.create_subprocess_exec(*ZEROTIR, "track", str(folder), "--to", name)
            try:
                if kill:
                    position = folder / "trackers" / name / POSITION
                    async with asyncio.timeout(60):
                        while not position.exists():
                            await asyncio.sleep(0.05)
                    # It has taken all of it, or some.
                    await asyncio.sleep(3.0)
                    following.kill()
                else:
                    await record_end(bus, steps)
                    async with asyncio.timeout(60):
                        assert await following.wait() == 0
            finally:
                if following.returncode is None:
                    following.kill()
                await following.wait()
    found = tracked.read(folder, name).points
    assert len(found) == 20
    expected = {(step, step / 8) for step in range(1, steps + 1)}
    assert {metric: set(points) for metric, points in found.items()} == dict.fromkeys(found, expected)
