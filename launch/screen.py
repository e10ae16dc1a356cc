"""Shows what a command does while it works, in colours where they are wanted.

A pipe gets plain lines. A terminal gets the same, and below them one line that says what is going on just now. `NO_COLOR`,
`FORCE_COLOR` and `TERM=dumb` are obeyed.
"""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.live import Live
from rich.text import Text

from runtime.terminal import printable

_quiet = False
"""`--quiet` was given to this process."""


def be_quiet() -> None:
    """Leaves out, from now on, what `say` is told while things go well."""
    global _quiet
    _quiet = True


def say(text: str, *, matters: bool = False) -> None:
    """Prints progress, a line or more; with `--quiet` only what `matters`: errors and results.

    Drops it where it cannot be written, on a full disk for one: the work goes on.
    """
    if _quiet and not matters:
        return
    try:
        lines = "\n".join(map(printable, text.split("\n")))
        sys.stdout.write(f"{time.strftime('%H:%M:%S')}  {lines}\n")
        sys.stdout.flush()
    except OSError:
        # This one would keep the line, and try it again with the next ones and at the process's end.
        sys.stdout = os.fdopen(1, "w", closefd=False)


def is_live() -> bool:
    """Returns whether standard output takes a line that changes: it is a terminal, and nobody asked to be left in peace."""
    console = Console(file=sys.stdout)
    return console.is_terminal and not console.is_dumb_terminal and not _quiet


@contextlib.contextmanager
def live_line() -> Iterator[Callable[[str], None]]:
    """Yields what sets the line below everything that is said, while the body runs; it does nothing in a pipe."""
    if not is_live():
        yield lambda text: None
        return
    # What is said meanwhile is broken by the terminal alone: a path stays a path.
    console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
    with Live(Text(), console=console, transient=True, refresh_per_second=2) as live:
        yield lambda text: live.update(Text(printable(text), "dim", no_wrap=True, overflow="ellipsis"))


class _Console(Console):
    """Leaves a pipe that nobody reads to the command, which ends well then; rich would end it with status 1."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def coloured(*texts: tuple[str, str]) -> str:
    """Returns texts, each beginning a line and with its style, for standard output; styles are those of `rich`.

    Whatever in them a terminal would obey is escaped.
    """
    console = _Console(file=sys.stdout, highlight=False, soft_wrap=True)
    with console.capture() as captured:
        for text, style in texts:
            lines = (printable(line.expandtabs(4)) for line in text.split("\n"))
            console.print(Text("\n".join(lines), style))
    return captured.get()
