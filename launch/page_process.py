"""Keeps the page of a run under `zerotir up`, and says where it is. Whatever becomes of it is no concern of the run's."""

import asyncio
from pathlib import Path
from shlex import quote

from launch.cores import leftovers
from launch.processes import RoleProcess
from launch.screen import say

LOOK_EVERY_S = 0.2


class PageProcess:
    """The page of one run."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._output = folder / "logs" / "page.out"
        self._process = RoleProcess("page", ["page", str(folder)], self._output, leftovers())
        self._keeping: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Starts it."""
        self._keeping = asyncio.create_task(self._keep())

    async def stop(self) -> None:
        """Ends it."""
        if self._keeping is not None:
            self._keeping.cancel()
            await self._process.stop()

    async def _keep(self) -> None:
        begin = self._output.stat().st_size if self._output.exists() else 0
        try:
            await self._process.start()
        except OSError as error:
            say(f"the page cannot be started ({error}); training goes on without it", matters=True)
            return
        told = False
        while self._process.code is None:
            if not told and (address := _address(self._output, begin)):
                say(f"page       {address}")
                told = True
            await asyncio.sleep(LOOK_EVERY_S)
        by_hand = f"zerotir page {quote(str(self._folder))}"
        say(f"page {self._process.ending()}; training goes on without it. Again: {by_hand}", matters=True)


def _address(output: Path, begin: int) -> str | None:
    """Returns the address that the page has printed behind an offset of its output."""
    with output.open("rb") as file:
        file.seek(begin)
        lines = file.read().decode(errors="replace").split("\n")
    return next((line for line in lines[:-1] if line.startswith("http://")), None)
