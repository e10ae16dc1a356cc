"""Starts the command line as users do, and watches the processes of a run."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ZEROTIR = [sys.executable, "-m", "launch.cli"]
TIMEOUT_S = 300
"""Bound of every wait: far above what any of them takes on a busy machine."""


def zerotir(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "launch.cli", *arguments], capture_output=True, text=True, timeout=120, check=False
    )


def processes_of(folder: Path) -> list[str]:
    """Returns id and command line of the living processes of this run: its roles and their engines, which vLLM renames."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                environment = (entry / "environ").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if str(folder) in command or f"ZEROTIR_TEST_RUN={folder}" in environment:
                found.append(f"{entry.name} {command}")
    return found


def wait_for[T](condition: Callable[[], T | None], up: "subprocess.Popen[bytes]", output: Path) -> T:
    """Returns what `condition` does once that is true; fails, with what every role printed last, when `up` ends before."""
    deadline = time.monotonic() + TIMEOUT_S
    while not (value := condition()):
        assert up.poll() is None, f"the run ended early, with status {up.returncode}:\n{words_of(output)}"
        assert time.monotonic() < deadline, f"waited in vain:\n{words_of(output)}"
        time.sleep(0.1)
    return value


def words_of(output: Path) -> str:
    """Returns the end of what `up` and each of its roles printed."""
    printed = [output, *sorted(output.parent.glob("runs/*/logs/*.out"))]
    return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')[-2000:]}" for path in printed)


class Roles:
    """A run on the tiny model, each role started by hand."""

    def __init__(self, folder: Path, *overrides: str) -> None:
        self.folder = folder
        # Control groups are not what these tests are about.
        overrides = (*overrides, "sandbox.cgroups=off")
        self._settings = [part for override in overrides for part in ("--set", override)]
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, role: str, *arguments: str) -> "subprocess.Popen[bytes]":
        self.folder.mkdir(exist_ok=True)
        where = ["--folder", str(self.folder)]
        if role != "bus":
            where = ["--bus", str(self.folder / "bus.json"), "--id", role]
        # A replay sums with as many threads as the learner had; one is the same on every machine.
        environment = {**os.environ, "ZEROTIR_TEST_RUN": str(self.folder), "OMP_NUM_THREADS": "1"}
        with (self.folder / f"{role}.txt").open("ab") as output:
            self._running[role] = subprocess.Popen(
                [sys.executable, "-m", "launch.cli", role, "tiny", *self._settings, *where, *arguments],
                stdout=output,
                stderr=output,
                env=environment,
                start_new_session=True,
            )
        return self._running[role]

    def start_all_but_the_learner(self, deadline: float) -> None:
        self.start("bus")
        while not (self.folder / "bus.json").exists():
            assert time.monotonic() < deadline, self.output("bus")
            time.sleep(0.05)
        self.start("sandbox")
        self.start("actor")

    def output(self, role: str) -> str:
        return (self.folder / f"{role}.txt").read_text()[-3000:]

    def stop(self) -> None:
        for role in ("learner", "actor", "sandbox", "bus"):
            if role in self._running and self._running[role].poll() is None:
                self._running[role].terminate()
                self._running[role].wait(timeout=60)
