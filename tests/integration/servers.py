"""Servers of a cluster, as `zerotir bus --init` sets them up, and certificates for them."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

from bus.cluster import ROUTES_ABOVE, initialise
from bus.server import USUAL_MESSAGE_BYTES, server_binary
from configs.bus import BusConfig


def free_ports(count: int) -> list[int]:
    """Ports that are free, and those for the servers' neighbours above them as well."""
    found: list[int] = []
    while len(found) < count:
        with contextlib.suppress(OSError), socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
            other.bind(("127.0.0.1", port + ROUTES_ABOVE))
            if port not in found:
                found.append(port)
    return found


def hang(process: asyncio.subprocess.Process) -> None:
    """Stops a child; returns once it does nothing any more. SIGCONT has it go on."""
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)


@contextlib.asynccontextmanager
async def servers(folder: Path, config: BusConfig) -> AsyncIterator[dict[str, asyncio.subprocess.Process]]:
    """The run's servers by name; the living ones are stopped at the end."""
    files = initialise(folder, config, USUAL_MESSAGE_BYTES)
    with (folder.parent / "servers.log").open("wb") as output:
        processes = {
            f"{folder.name}-{path.stem}": await asyncio.create_subprocess_exec(
                server_binary(), "-c", str(path), cwd=folder.parent, stdout=output, stderr=output
            )
            for path in files
        }
        try:
            yield processes
        finally:
            for process in processes.values():
                if process.returncode is None:
                    process.kill()
                await process.wait()


def make_certificates(folder: Path) -> None:
    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True, cwd=folder)

    for name in ("ca", "other-ca"):
        openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
                "-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}")  # fmt: skip
    openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "server.key",
            "-out", "server.csr", "-subj", "/CN=localhost")  # fmt: skip
    (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1")
    openssl("x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2",
            "-extfile", "names", "-out", "server.pem")  # fmt: skip
