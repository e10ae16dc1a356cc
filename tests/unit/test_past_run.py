"""Views of a run whose servers do not answer."""

import json
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bus.address import AddressError, BusAddress
from bus.connection import BusError
from configs.loading import dump_config, load_config
from launch.past_run import folder_alone, status_of
from tests.processes import ZEROTIR

BALANCE = {
    "tickets_issued": 8.0,
    "tickets_trained": 8.0,
    "tickets_filtered": 0.0,
    "tickets_failed": 0.0,
    "tickets_open": 0.0,
}


def address(port: int) -> BusAddress:
    return BusAddress.new("past", f"nats://127.0.0.1:{port}")


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.fixture
def run(tmp_path: Path, closed_port: int) -> Path:
    """A run's folder after two of three steps, with half a line at its end."""
    address(closed_port).write(tmp_path / "bus.json")
    (tmp_path / "up.yaml").write_text(dump_config(load_config("tiny", ["learner.steps=3"])))
    records = [
        {
            "run": "past",
            "seq": seq,
            "time": time.time() - 60,
            "role": role,
            "id": role,
            "step": step,
            "accuracy": 0.5,
            **BALANCE,
        }
        for seq, (role, step) in enumerate([("sandbox", None), ("learner", 1), ("learner", 2)], 1)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records) + '{"run": "pa')
    return tmp_path


def zerotir(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*ZEROTIR, *arguments], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(("greeting", "is_one"), [(b"INFO {}\r\n", True), (b"HTTP/1.1 400\r\n", False), (b"", False)])
def test_a_run_whose_server_greets_is_asked(run: Path, greeting: bytes, is_one: bool):
    """Another program may have its port."""
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as thread:
        address(server.getsockname()[1]).write(run / "bus.json")

        def greet() -> None:
            client, _ = server.accept()
            client.sendall(greeting)
            client.close()

        greeted = thread.submit(greet)
        assert folder_alone(run / "bus.json") == (None if is_one else run)
        greeted.result()


def test_one_that_does_not_is_read_from_its_folder(run: Path):
    assert folder_alone(run / "bus.json") == run
    (run / "bus.json").unlink()
    assert folder_alone(run / "bus.json") == run
    (run / "metrics.jsonl").unlink()
    with pytest.raises(AddressError, match="no run found"):
        folder_alone(run / "bus.json")


def test_a_folder_without_metrics_says_where_to_look(run: Path):
    (run / "metrics.jsonl").unlink()
    with pytest.raises(BusError, match=r"nothing answers at nats://127\.0\.0\.1:"):
        folder_alone(run / "bus.json")


def test_status(run: Path):
    done = zerotir("status", "--bus", str(run / "bus.json"))
    assert (done.returncode, done.stderr) == (0, "")
    assert "not finished: 2 of 3 steps, the last 1 min" in done.stdout
    assert f"go on with: zerotir up --resume {run}" in done.stdout
    assert "8 issued = 8 trained" in done.stdout
    (run / "up.yaml").write_text(dump_config(load_config("tiny", ["learner.steps=2"])))
    assert "not finished" in status_of(run)
    (run / "model").mkdir()
    assert "\nfinished: 2 of 2 steps" in status_of(run)


def test_a_configuration_of_another_version_hides_nothing_else(run: Path):
    (run / "up.yaml").write_text("no_such_field: 1\n")
    assert "not finished: 2 steps" in status_of(run)


def test_json_is_alone_on_standard_output(run: Path):
    done = zerotir("metrics", "--json", "--role", "learner", "--bus", str(run / "bus.json"))
    assert [json.loads(line)["step"] for line in done.stdout.splitlines()] == [1, 2]
    assert "servers do not answer" in done.stderr
    text = zerotir("metrics", "--bus", str(run / "bus.json")).stdout.splitlines()
    assert len(text) == 3
    assert text[1].endswith(
        " learner step 1  accuracy 0.5  tickets_issued 8  tickets_trained 8  tickets_filtered 0  "
        "tickets_failed 0  tickets_open 0"
    )


def test_lines_that_are_no_records_are_left_out(run: Path):
    odd = b'{"a": 1}\n[1]\n3\n{"role": "learner"}\n\xff\n'
    odd += b'{"run": "x", "seq": 9, "time": 1, "role": "learner", "id": "l", "step": 3, "accuracy": "high"}\n'
    (run / "metrics.jsonl").write_bytes(odd + (run / "metrics.jsonl").read_bytes())
    done = zerotir("metrics", "--json", "--bus", str(run / "bus.json"))
    assert done.returncode == 0
    assert [json.loads(line)["seq"] for line in done.stdout.splitlines()] == [1, 2, 3]
    assert "2 of 3 steps" in status_of(run)


def test_more_steps_than_are_asked_for_are_done(run: Path):
    (run / "up.yaml").write_text(dump_config(load_config("tiny", ["learner.steps=1"])))
    (run / "model").mkdir()
    assert "\nfinished: 2 of 1 steps" in status_of(run)


def test_weights(run: Path):
    assert "no checkpoint" in zerotir("weights", str(run)).stdout
    (run / "checkpoints" / "step-000002").mkdir(parents=True)
    (run / "checkpoints" / "step-000003.partial").mkdir()
    done = zerotir("weights", str(run))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(f"has\n  {run}/checkpoints/step-000002\n")
    refused = zerotir("weights", str(run), "--export", "newest", str(run / "out"))
    assert refused.returncode == 2
    assert "do not answer" in refused.stderr
    assert not (run / "out").exists()
