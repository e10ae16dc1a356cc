"""What an execution costs, through NATS, by the way in which the program is started.

    python benchmarks/sandbox.py [--seconds 60] [--ways bare nsjail cold warm packages]

Ways: `bare`, an interpreter without any jail (the floor; it runs this file's own programs, never a model's); `nsjail`, one
plain nsjail launch a program with the same configuration, without control groups; `cold`, a jail started for each program;
`warm`, a jail that waits; `packages`, one that waits with sympy and the other packages imported, and a program that uses
them. Each stands behind the same service, in a process of its own, and is asked by the same client.

A burst takes no more programs than jails wait; between bursts the pool fills up. Sustained is a closed loop of so many
programs in flight for so many seconds. CPU seconds are those of the service and its jails (not of the client and the
NATS server), so they hold what the pool spends in the background. Prints a table and adds to `benchmarks/results/`.
"""

import argparse
import asyncio
import contextlib
import json
import os
import platform
import re
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from statistics import quantiles
from typing import Any, cast

# Started as a script, this file would stand before the package of its name.
sys.path[:] = [folder for folder in sys.path if Path(folder).resolve() != Path(__file__).resolve().parent]

from bus.address import BusAddress
from bus.connection import Bus, open_bus
from bus.messages import ExecutionResult, Outcome
from bus.server import embedded_server
from configs.bus import BusConfig
from configs.schema import SandboxConfig
from sandbox.client import SandboxClient, statistics
from sandbox.jail import Jail
from sandbox.pool import Pool
from sandbox.service import SandboxService

RESULTS = Path(__file__).parent / "results" / "sandbox.json"
WAYS = ("bare", "nsjail", "cold", "warm", "packages")
LEVELS = (1, 8, 64)
NOTHING = "print(6 * 7)"
SYMPY = "import sympy\nprint(sympy.Integer(6) * 7)"
WAITING = {"warm": (64, 0), "packages": (0, 16)}
BURST_SAMPLES = 64


def configuration(way: str) -> SandboxConfig:
    warm, loaded = WAITING.get(way, (0, 0))
    return SandboxConfig(
        concurrency=64,
        cgroups="prefer",
        warm=warm,
        warm_with_packages=loaded,
        warm_memory_mb=4096,
        request_timeout_s=600,
    )


class Direct:
    """Starts `argv` for each program, as a pool would be asked to."""

    def __init__(self, argv: list[str]) -> None:
        self._argv = argv

    async def run(self, code: str, timeout_s: float) -> ExecutionResult:
        pipe = asyncio.subprocess.PIPE
        begin = time.monotonic()
        process = await asyncio.create_subprocess_exec(*self._argv, stdin=pipe, stdout=pipe, stderr=pipe, pass_fds=FDS)
        out, err = await asyncio.wait_for(process.communicate(code.encode()), timeout_s)
        return ExecutionResult(
            outcome=Outcome.EXITED,
            exit_code=process.returncode,
            signal=None,
            stdout=out.decode(),
            stderr="",
            truncated=False,
            seconds=time.monotonic() - begin,
            detail=err.decode(errors="replace")[-200:],
        )

    def waiting(self, *, loaded: bool) -> int:
        return 0


FDS: list[int] = []
"""Descriptors that a direct nsjail finds open: the namespace of root's mounts."""


@contextlib.asynccontextmanager
async def executor(way: str) -> AsyncIterator[Pool]:
    if way == "bare":
        yield cast(Pool, Direct([getattr(sys, "_base_executable", sys.executable), "-I", "-S", "-"]))
        return
    jail = Jail(configuration(way))
    if way != "nsjail":
        async with Pool(jail) as pool:
            yield pool
        return
    with tempfile.NamedTemporaryFile(suffix=".cfg") as file:
        file.write(jail._bare)
        file.flush()
        # Without what ties a jail to its service.
        command = [file.name if part == "/proc/self/fd/4" else part for part in jail._command[3:]]
        if jail._stage is not None:
            FDS.append(jail._stage.descriptor)
            command[1] = f"--mount=/proc/self/fd/{jail._stage.descriptor}"
        # The jail passes descriptor 3 on, as the program's standard error.
        shell = shutil.which("sh") or "sh"
        yield cast(Pool, Direct([shell, "-c", 'exec 3>/dev/null; exec "$@"', "sh", *command]))


async def serve(way: str, address: BusAddress) -> None:
    """Runs the service in this process until its standard input ends."""
    async with open_bus(address, BusConfig(), "service") as bus, executor(way) as pool:
        service = SandboxService(bus.client, bus.names.execution, pool, configuration(way), way)
        await service.start()
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.read)
        await service.drain(5.0)


class Measured:
    """One way's service under measurement."""

    def __init__(self, way: str, bus: Bus, pid: int) -> None:
        self.way = way
        self._bus = bus
        self._pid = pid
        self._client = SandboxClient(bus.client, bus.names.execution, configuration(way))
        self._code = SYMPY if way == "packages" else NOTHING

    async def filled(self) -> None:
        """Waits until as many jails wait as are to."""
        async with asyncio.timeout(300):
            while True:
                (found,) = await statistics(self._bus.client, self._bus.names.execution)
                if (found.idle_jails, found.idle_jails_with_packages) == WAITING.get(self.way, (0, 0)):
                    return

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")

    def peak_mb(self) -> float:
        found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{self._pid}/status").read_text())
        assert found
        return int(found[1]) / 1024

    async def one(self) -> float:
        begin = time.perf_counter()
        result = await self._client.execute(self._code, 60.0)
        if result.stdout != "42\n":
            raise RuntimeError(f"{self.way}: {result}")
        return time.perf_counter() - begin

    async def burst(self, in_flight: int) -> dict[str, Any]:
        # No more than wait; where none wait, as many as are in flight.
        size = min(max(in_flight, 16), sum(WAITING.get(self.way, (64, 0))))
        seconds: list[float] = []
        busy = 0.0
        while len(seconds) < BURST_SAMPLES:
            await self.filled()
            begin = time.perf_counter()
            slots = asyncio.Semaphore(in_flight)

            async def placed(slots: asyncio.Semaphore = slots) -> float:
                async with slots:
                    return await self.one()

            seconds += await asyncio.gather(*(placed() for _ in range(size)))
            busy += time.perf_counter() - begin
        return self.row("burst", in_flight, seconds, busy, None)

    async def sustained(self, in_flight: int, duration_s: float) -> dict[str, Any]:
        seconds: list[float] = []
        cpu, begin = self.cpu_s(), time.perf_counter()

        async def loop() -> None:
            while time.perf_counter() - begin < duration_s:
                seconds.append(await self.one())

        await asyncio.gather(*(loop() for _ in range(in_flight)))
        return self.row("sustained", in_flight, seconds, time.perf_counter() - begin, self.cpu_s() - cpu)

    def row(
        self, phase: str, in_flight: int, seconds: list[float], total_s: float, cpu_s: float | None
    ) -> dict[str, Any]:
        cuts = quantiles(seconds, n=100)
        return {
            "way": self.way,
            "phase": phase,
            "in_flight": in_flight,
            "p50_ms": round(1e3 * cuts[49], 1),
            "p99_ms": round(1e3 * cuts[98], 1),
            "per_s": round(len(seconds) / total_s, 1),
            "cpu_ms": None if cpu_s is None else round(1e3 * cpu_s / len(seconds), 1),
            "executions": len(seconds),
            "seconds": round(total_s, 1),
            "peak_mb": round(self.peak_mb(), 1),
            "at": time.strftime("%Y-%m-%d %H:%M"),
        }


async def measure(way: str, address: BusAddress, duration_s: float) -> list[dict[str, Any]]:
    address = address.model_copy(update={"run": f"benchmark-{way}"})
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, __file__, "--serve", way, "--address", address.model_dump_json()), stdin=pipe, stdout=pipe
    )
    assert process.stdin is not None
    assert process.stdout is not None
    rows = []
    try:
        await asyncio.wait_for(process.stdout.readline(), 60)
        async with open_bus(address, BusConfig(), "client") as bus:
            measured = Measured(way, bus, process.pid)
            for level in LEVELS:
                rows.append(await measured.burst(level))
                rows.append(await measured.sustained(level, duration_s))
                sys.stderr.write(f"{table(rows[-2:])}\n")
    finally:
        process.stdin.close()
        await process.wait()
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    names = ("way", "phase", "in_flight", "p50_ms", "p99_ms", "per_s", "cpu_ms", "executions", "seconds", "peak_mb")
    lines = ["| " + " | ".join(names) + " |", "| " + " | ".join("---" for _ in names) + " |"]
    lines += ["| " + " | ".join("" if row[name] is None else str(row[name]) for name in names) + " |" for row in rows]
    return "\n".join(lines)


def hardware() -> str:
    info = Path("/proc/cpuinfo").read_text()
    model = re.search(r"model name\s*: (.*)", info)
    return f"{len(os.sched_getaffinity(0))} cores of {model[1] if model else platform.machine()}, Linux {platform.release()}"


async def main(ways: list[str], duration_s: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with embedded_server(Path(folder), BusConfig(), "benchmark") as (address, _):
            for way in ways:
                keep(way, await measure(way, address, duration_s))
    sys.stdout.write(f"{hardware()}\n\n{table(json.loads(RESULTS.read_text())['rows'])}\n")


def keep(way: str, rows: list[dict[str, Any]]) -> None:
    """Puts a way's rows into the results, in the place of its earlier ones."""
    kept = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    rows = [*(row for row in kept if row["way"] != way), *rows]
    rows.sort(key=lambda row: (row["phase"], row["in_flight"], WAYS.index(row["way"])))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"hardware": hardware(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="length of each sustained measurement")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--serve", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--address", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        asyncio.run(serve(arguments.serve, BusAddress.model_validate_json(arguments.address)))
    else:
        asyncio.run(main(arguments.ways, arguments.seconds))
