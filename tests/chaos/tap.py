"""A relay between one process and the NATS server that reads what the process publishes.

By it a fault strikes at the k-th publish on a subject, not at a time, and between two messages: when a watch that holds
fires, nothing more passes in either direction until `release`. It can also cut every connection and refuse new ones.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass


@dataclass
class Watch:
    """The k-th publish, from now on, on a subject that contains `part`."""

    part: str
    left: int
    hold: str | None
    fired: asyncio.Future[bytes]


class Tap:
    """Listens on `port` once it is started."""

    def __init__(self, host: str, port: int) -> None:
        self._upstream = (host, port)
        self._watches: list[Watch] = []
        self._open = asyncio.Event()
        self._open.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._cut = False
        self._server: asyncio.Server | None = None

    async def start(self) -> int:
        """Returns the port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self._server.sockets[0].getsockname()[1]

    def watch(self, part: str, k: int = 1, hold: str | None = None) -> asyncio.Future[bytes]:
        """The k-th publish on a subject that contains `part`, as it was sent; `hold`: `before` or `after` it has passed."""
        watch = Watch(part, k, hold, asyncio.get_running_loop().create_future())
        self._watches.append(watch)
        return watch.fired

    def release(self) -> None:
        """Lets messages pass again."""
        self._open.set()

    def cut(self) -> None:
        """Ends all connections and takes no new ones."""
        self._cut = True
        for writer in list(self._writers):
            writer.transport.abort()

    def repair(self) -> None:
        """Takes connections again."""
        self._cut = False

    async def close(self) -> None:
        self._open.set()
        self.cut()
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up: asyncio.StreamWriter | None = None
        try:
            if self._cut:
                return
            answers, up = await asyncio.open_connection(*self._upstream)
            self._writers |= {writer, up}
            pumps = [
                asyncio.create_task(self._requests(reader, up)),
                asyncio.create_task(self._answers(answers, writer)),
            ]
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
        except OSError:
            pass  # The server is down: the client sees its connection end and tries again.
        finally:
            for end in (writer, up):
                if end is not None:
                    self._writers.discard(end)
                    end.transport.abort()

    async def _answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(2**18):
            await self._open.wait()
            writer.write(data)
            await writer.drain()

    async def _requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async for subject, raw in operations(reader):
            await self._open.wait()
            watch = self._match(subject) if subject else None
            if watch is not None and watch.hold == "before":
                self._open.clear()
                watch.fired.set_result(raw)
                await self._open.wait()
            writer.write(raw)
            if watch is not None and not watch.fired.done():
                if watch.hold == "after":
                    self._open.clear()
                watch.fired.set_result(raw)
            await writer.drain()

    def _match(self, subject: str) -> Watch | None:
        for watch in self._watches:
            # Requests to JetStream name other subjects within their own.
            if watch.part in subject and watch.part.startswith("$") == subject.startswith("$"):
                watch.left -= 1
                if watch.left == 0:
                    self._watches.remove(watch)
                    return None if watch.fired.cancelled() else watch
        return None


async def operations(reader: asyncio.StreamReader) -> AsyncIterator[tuple[str, bytes]]:
    """What a NATS client sends, as (subject of a publish or nothing, bytes)."""
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            line = await reader.readuntil(b"\r\n")
            words = line.split()
            if words and words[0].upper() in (b"PUB", b"HPUB"):
                yield words[1].decode(), line + await reader.readexactly(int(words[-1]) + 2)
            else:
                yield "", line
