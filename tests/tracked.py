"""Reads back, with each tracker's own package or format, what it was given."""

import json
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

OFFLINE = {
    "WANDB_MODE": "offline",
    "WANDB_ERROR_REPORTING": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
}
"""Environment in which no tracker reaches for a network."""
WANDB_BLOCK = 32768
WANDB_FILE_HEADER, WANDB_CHUNK_HEADER = 7, struct.Struct("<IHB")
LAST_OR_WHOLE = (1, 4)


class Tracked(NamedTuple):
    """One run in one tracker."""

    points: dict[str, list[tuple[int, float]]]
    """Of each metric (step or second, value), in the order in which the tracker tells them."""
    times: dict[str, list[float]]
    """Of each metric when it was measured; empty where the tracker notes its own time."""
    steps: Any
    """`learner.steps` in the configuration that it has."""
    transcripts: list[str]


def environment(home: Path) -> dict[str, str]:
    """Returns the environment in which trackers keep everything in `home`."""
    return OFFLINE | {
        "TRACKIO_DIR": str(home / "trackio"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{home}/mlflow.db",
        "HOME": str(home),
    }


def tensorboard(run: Path) -> Tracked:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    points: dict[str, list[tuple[int, float]]] = {}
    times: dict[str, list[float]] = {}
    texts: dict[str, list[str]] = {}
    files = (run / "trackers" / "tensorboard").rglob("events.*")
    for folder in sorted({file.parent for file in files}):
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
        events.Reload()
        for tag in events.Tags()["scalars"]:
            points[tag] = [(event.step, round(event.value, 6)) for event in events.Scalars(tag)]
            times[tag] = [event.wall_time for event in events.Scalars(tag)]
        for tag in events.Tags()["tensors"]:
            texts[tag.removesuffix("/text_summary")] = [
                event.tensor_proto.string_val[0].decode() for event in events.Tensors(tag)
            ]
    [*_, configuration] = texts.pop("configuration")
    lines = [line.strip() for line in configuration.split("learner:\n")[1].splitlines()]
    steps = next(int(line.split()[1]) for line in lines if line.startswith("steps:"))
    return Tracked(points, times, steps, [text for tag in sorted(texts) for text in texts[tag]])


def wandb(run: Path) -> Tracked:
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    points: dict[str, list[tuple[int, float]]] = {}
    times: dict[str, list[float]] = {}
    config: dict[str, Any] = {}
    transcripts: list[str] = []
    ids = set()
    for file in sorted(
        (run / "trackers" / "wandb").rglob("offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime
    ):
        for packed in _wandb_records(file):
            record = Record()
            record.ParseFromString(packed)
            kind = record.WhichOneof("record_type")
            updates = {"run": record.run.config.update, "config": record.config.update}.get(kind or "", ())
            config |= {update.key: json.loads(update.value_json) for update in updates if update.key}
            if kind == "run":
                ids.add((record.run.project, record.run.run_id))
            if kind != "history":
                continue
            row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            at, time = row.pop("step", None), row.pop("_timestamp")
            seconds = row.pop("seconds", None)
            if path := row.get("transcripts/path"):
                transcripts += [each[-1] for each in json.loads((file.parent / "files" / path).read_text())["data"]]
                continue
            for name, value in row.items():
                if not name.startswith("_"):
                    points.setdefault(name, []).append((seconds if at is None else at, round(value, 6)))
                    times.setdefault(name, []).append(time)
    assert ids == {("zerotir", run.name)}
    return Tracked(points, times, config["learner"]["steps"], transcripts)


def _wandb_records(path: Path) -> Iterator[bytes]:
    """Yields the records of a `.wandb` file, which has the format of a LevelDB log behind a header of its own."""
    data, at, whole = path.read_bytes(), WANDB_FILE_HEADER, b""
    while at + WANDB_CHUNK_HEADER.size <= len(data):
        if (left := WANDB_BLOCK - at % WANDB_BLOCK) < WANDB_CHUNK_HEADER.size:
            at += left
            continue
        _, length, kind = WANDB_CHUNK_HEADER.unpack_from(data, at)
        at += WANDB_CHUNK_HEADER.size
        whole += data[at : at + length]
        at += length
        if kind in LAST_OR_WHOLE:
            yield whole
            whole = b""


def trackio(run: Path) -> Tracked:
    from trackio.sqlite_storage import SQLiteStorage

    points: dict[str, list[tuple[int, float]]] = {}
    transcripts: list[str] = []
    for row in SQLiteStorage.get_logs("zerotir", run.name):
        at = row.pop("step")
        row.pop("timestamp")
        if table := row.pop("transcripts", None):
            transcripts += [each["transcript"] for each in table["_value"]]
        for name, value in row.items():
            points.setdefault(name, []).append((at, round(value, 6)))
    config = SQLiteStorage.get_run_config("zerotir", run.name)
    assert config is not None
    return Tracked(points, {}, config["learner"]["steps"], transcripts)


def mlflow(run: Path) -> Tracked:
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name("zerotir")
    assert experiment is not None
    [found] = client.search_runs([experiment.experiment_id])
    histories = {name: client.get_metric_history(found.info.run_id, name) for name in found.data.metrics}
    points = {name: [(each.step, round(each.value, 6)) for each in history] for name, history in histories.items()}
    times = {name: [each.timestamp / 1000 for each in history] for name, history in histories.items()}
    files = client.list_artifacts(found.info.run_id, "transcripts")
    transcripts = [Path(client.download_artifacts(found.info.run_id, each.path)).read_text() for each in files]
    import yaml

    config = yaml.safe_load(Path(client.download_artifacts(found.info.run_id, "config.yaml")).read_text())
    return Tracked(points, times, config["learner"]["steps"], transcripts)


def read(run: Path, name: str) -> Tracked:
    """Returns what a tracker has, read in a process of its own: their packages keep what they have seen.

    The process's environment says where they keep it.
    """
    program = (
        "import json, sys, pathlib; from tests.tracked import READERS;"
        "print('\\n' + json.dumps(READERS[sys.argv[1]](pathlib.Path(sys.argv[2]))))"
    )
    command = [sys.executable, "-c", program, name, str(run)]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=root)
    assert done.returncode == 0, done.stderr
    values: list[Any] = json.loads(done.stdout.splitlines()[-1])
    points = {metric: [(at, value) for at, value in each] for metric, each in values[0].items()}
    return Tracked(points, *values[1:])


READERS = {"tensorboard": tensorboard, "wandb": wandb, "trackio": trackio, "mlflow": mlflow}
