"""Structured logs of every role: JSON lines to a file, readable lines to a terminal.

Each line carries role, id, run and, where the process holds weights, the version. Libraries that use `logging` go the
same way, from warnings on. An event that comes too often is counted and left out (`runtime.log_rate`).
"""

import logging
import sys
from pathlib import Path

import structlog

from runtime.log_rate import RateFilter
from runtime.terminal import printable, takes_colours

PACKAGES = (
    *("actors", "bus", "configs", "evaluation", "grading", "launch", "learner", "page", "runtime"),
    *("sandbox", "scaling", "tasks", "tracking", "transcripts", "weights"),
)
"""Ours, which log from `INFO` on; a library does from `WARNING` on."""

_context: dict[str, str] = {}
"""Context of the whole process: a context variable would not reach tasks that run already."""


def _add_context(logger: object, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    return {**_context, **event}


def _escape(logger: object, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Escapes what a terminal would obey. Tracebacks are indented, so that none of their lines looks like one of a log."""
    escaped = {name: printable(value) if isinstance(value, str) else value for name, value in event.items()}
    if isinstance(trace := event.get("exception"), str):
        escaped["exception"] = "\n".join(f"    {printable(line)}" for line in trace.split("\n"))
    return escaped


_SHARED: list[structlog.typing.Processor] = [
    _add_context,
    structlog.processors.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.StackInfoRenderer(),
]


def set_up_logs(role: str, id: str, run: str, file: Path | None = None, *, terminal: int | None = logging.INFO) -> None:
    """Sends all logs of this process to `file` (appended), and those from the level `terminal` on to stderr; None: none."""
    handlers: list[logging.Handler] = []
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        to_file = logging.FileHandler(file)
        to_file.setFormatter(
            structlog.stdlib.ProcessorFormatter(
                processors=[
                    structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                    structlog.processors.format_exc_info,
                    structlog.processors.JSONRenderer(),
                ],
                foreign_pre_chain=_SHARED,
            )
        )
        handlers.append(to_file)
    if terminal is not None:
        to_terminal = logging.StreamHandler(sys.stderr)
        to_terminal.setLevel(terminal)
        to_terminal.setFormatter(
            structlog.stdlib.ProcessorFormatter(
                processors=[
                    structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                    structlog.processors.format_exc_info,
                    _escape,
                    structlog.dev.ConsoleRenderer(colors=takes_colours(sys.stderr), pad_event_to=40),
                ],
                foreign_pre_chain=_SHARED,
            )
        )
        handlers.append(to_terminal)
    for handler in handlers:
        handler.addFilter(RateFilter())
    root = logging.getLogger()
    root.handlers = handlers
    root.setLevel(logging.WARNING)
    for name in PACKAGES:
        logging.getLogger(name).setLevel(logging.INFO)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_SHARED,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    _context.clear()
    _context.update(role=role, id=id, run=run)


def no_more_on_terminal() -> str | None:
    """Sends what is logged from now on to the file alone; returns its path, None where there is none."""
    root = logging.getLogger()
    files = [handler for handler in root.handlers if isinstance(handler, logging.FileHandler)]
    root.handlers = [*files] or [logging.NullHandler()]
    return files[0].baseFilename if files else None


def log_emulated() -> None:
    """Says on every later line of this process that its run's tokens are made up."""
    _context["engine"] = "emulated"


def log_version(version: str) -> None:
    """Puts the weight version on every later line of this process."""
    _context["version"] = version
