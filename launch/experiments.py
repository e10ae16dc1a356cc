"""`zerotir scaling` and `zerotir matrix`: reports of runs, and runs that are made to be reported together.

A matrix runs one `zerotir up` after another, each in a folder of its own under `runs/matrix-NAME/`. `matrix.json` there
records every attempt at a run. Started again, the matrix skips finished runs, continues the others from their checkpoints,
and reports all of them at the end.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from types import FrameType
from typing import Any

from bus.metrics import steps_of
from configs.loading import ConfigError, dump_config
from configs.matrix import PlannedRun, load_matrix
from grading.reward_source import with_digest
from launch.screen import say
from runtime.files import try_lock, write_whole
from runtime.words import counted, time_left


def report_scaling(arguments: argparse.Namespace) -> int:
    """Writes the report of the runs that the command line names; returns the exit status."""
    return _report(arguments.runs, arguments.out)


def run_matrix(arguments: argparse.Namespace) -> int:
    """Runs, or lists, the matrix that the command line names; returns the exit status."""
    matrix, runs = load_matrix(arguments.matrix, arguments.set)
    folder = Path(runs[0].config.launch.runs_dir).resolve() / f"matrix-{matrix.name}"
    if arguments.list:
        return _list(folder, runs)
    loudness = ["--quiet"] * arguments.quiet + ["--verbose"] * arguments.verbose
    return _run_matrix(folder, runs, loudness)


def _report(folders: list[Path], out: Path | None) -> int:
    from scaling.report import write_report

    # `runs/latest` is a link: the run's own name tells more.
    folders = [folder.resolve() for folder in folders]
    if out is None:
        out = (folders[0] if len(folders) == 1 else Path(os.path.commonpath(folders))) / "scaling"
    sys.stdout.write(write_report(folders, out) + "\n")
    return 0


def _list(folder: Path, runs: list[PlannedRun]) -> int:
    attempts = _read_attempts(folder)
    for run in runs:
        steps = len(steps_of(folder / run.name))
        state = "finished" if _finished(attempts.get(run.name, [])) else "interrupted" if steps else "to do"
        sys.stdout.write(f"{run.name:<48} {state:<12} {steps:>5} of {run.config.learner.steps} steps\n")
    return 0


def _run_matrix(folder: Path, runs: list[PlannedRun], loudness: list[str]) -> int:
    for run in runs:
        _prepare(folder, run)
    with _locked(folder) as lock, _stop_signals() as stop:
        attempts = _read_attempts(folder)
        failed = []
        for number, run in enumerate(runs, 1):
            mine = attempts.setdefault(run.name, [])
            title = f"run {number} of {len(runs)}, {run.name}"
            if _finished(mine):
                say(f"{title}: finished before")
                continue
            left = _left(folder, [run for run in runs if not _finished(attempts.get(run.name, []))])
            say(f"{title}: {'goes on' if mine else 'starts'}{left}")
            mine.append({"started": time.time(), "ended": None, "code": None})
            _write_attempts(folder, attempts)
            code = _up(folder, run, stop, lock, loudness)
            mine[-1] |= {"ended": time.time(), "code": code}
            _write_attempts(folder, attempts)
            if stop.asked or code == 130:
                say("stopped; the same command goes on", matters=True)
                return 130
            if code != 0:
                say(f"{title}: FAILED with status {code}; the next one is tried", matters=True)
                failed.append(run.name)
    measured = [folder / run.name for run in runs if steps_of(folder / run.name)]
    code = _report(measured, folder / "scaling") if measured else 0
    if failed:
        say(f"failed: {', '.join(failed)}; the same command tries them again", matters=True)
    return 1 if failed else code


def _prepare(folder: Path, run: PlannedRun) -> None:
    """Writes the run's configuration down, once: every attempt at a run has the same one."""
    folder.mkdir(parents=True, exist_ok=True)
    path, text = folder / f"{run.name}.yaml", dump_config(with_digest(run.config))
    if path.exists() and path.read_text() != text:
        raise ConfigError(
            f"{run.name} was begun with another configuration, {path}: give the matrix another name, or remove that file "
            f"and {folder / run.name} to begin it anew"
        )
    path.write_text(text)
    (folder / run.name).mkdir(exist_ok=True)


def _left(folder: Path, runs: list[PlannedRun]) -> str:
    """Returns what `runs` are estimated to take yet, by what the steps of any run in `folder` took; nothing without one."""
    measured = [
        record["step_seconds"]
        for path in folder.glob("*/metrics.jsonl")
        for record in steps_of(path.parent)
        if "step_seconds" in record
    ]
    steps = sum(run.config.learner.steps - len(steps_of(folder / run.name)) for run in runs)
    return f"; {time_left(steps * fmean(measured))} for {counted(len(runs), 'run')}" if measured else ""


def _up(folder: Path, run: PlannedRun, stop: "_Stop", lock: int, loudness: list[str]) -> int:
    command = [
        sys.executable,
        "-m",
        "launch.cli",
        "up",
        str(folder / f"{run.name}.yaml"),
        "--resume",
        str(folder / run.name),
        *loudness,
    ]
    # In a session of its own Ctrl-C reaches it once, through the matrix. It holds the lock as well: should this process be
    # killed, nobody starts the same run beside one that is still on.
    child = subprocess.Popen(command, start_new_session=True, pass_fds=(lock,))
    with stop.forwarded_to(child):
        # Its end is bounded by the run's own bounds: every wait in it has one.
        return child.wait()


class _Stop:
    """SIGINT and SIGTERM ask the run that is on to stop, and the matrix with it."""

    def __init__(self) -> None:
        self.asked = False
        self._child: subprocess.Popen[bytes] | None = None

    @contextlib.contextmanager
    def forwarded_to(self, child: "subprocess.Popen[bytes]") -> Iterator[None]:
        """Passes the signals on to `child` while the body runs."""
        self._child = child
        if self.asked:
            child.send_signal(signal.SIGINT)
        yield
        self._child = None

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Handles both signals."""
        self.asked = True
        if self._child is not None:
            self._child.send_signal(signal.SIGINT)


@contextlib.contextmanager
def _stop_signals() -> Iterator[_Stop]:
    """Takes both signals while the body runs; yields what has taken them."""
    stop = _Stop()
    before = {number: signal.signal(number, stop.on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[int]:
    with (folder / "lock").open("a") as file:
        if not try_lock(file):
            raise ConfigError(f"another `zerotir matrix`, or a run of it, is at work in {folder}")
        yield file.fileno()


def _read_attempts(folder: Path) -> dict[str, list[dict[str, Any]]]:
    path = folder / "matrix.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _write_attempts(folder: Path, attempts: dict[str, list[dict[str, Any]]]) -> None:
    write_whole(folder / "matrix.json", json.dumps(attempts, indent=1) + "\n")


def _finished(attempts: list[dict[str, Any]]) -> bool:
    return any(attempt["code"] == 0 for attempt in attempts)
