"""`zerotir trace`: the life of one ticket, from when it was issued to the step that used it.

It is put together from the run's folder: the result in the archive, the step in the metrics, and every line of the logs
that names the ticket. Times of results and steps are the server's (`bus.clock`), those of logs each host's own.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from shlex import quote
from typing import NamedTuple

from bus.messages import Failure
from bus.metrics import steps_of
from configs.errors import UserError
from launch.archive_view import archive_of
from learner.tickets.audit import Ending
from learner.tickets.ledger import Ledger
from runtime.terminal import printable
from runtime.words import counted

COMMON = ("timestamp", "level", "logger", "role", "id", "run", "event", "ticket")
"""Fields of a log line that are not shown, or shown elsewhere."""


class Event(NamedTuple):
    """Something that happened to a ticket."""

    time: float
    """Seconds since the epoch."""
    who: str
    what: str


def start(arguments: argparse.Namespace) -> int:
    """Prints what is known of the ticket; returns the exit status. Raises UserError where nothing is."""
    run, ticket = arguments.run, arguments.ticket
    config, endings = archive_of(run)
    ledger = Ledger.of(config.learner)
    ending = next((each for each in endings if each.result.ticket == ticket), None)
    steps = {record["step"]: record["time"] for record in steps_of(run)}
    events = sorted([*_logged(run / "logs", ticket), *(_of_result(ending, ledger, steps) if ending else ())])
    if not events:
        raise UserError(
            f"{quote(str(run))} knows nothing of ticket {ticket}: its archive has no result of it, and no log names it "
            "(it is open, or was never issued)"
        )
    group = ledger.group_of(ticket)
    numbers = ledger.tickets(group)
    of = f", problem {ending.result.problem_id}" if ending and not isinstance(ending.result, Failure) else ""
    emulated = "EMULATED  " * config.emulated
    lines = [f"{emulated}ticket {ticket} of group {group} (tickets {numbers.start} to {numbers.stop - 1}){of}"]
    before = events[0].time
    for event in events:
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.time)) + f".{int(event.time % 1 * 1000):03d}"
        lines.append(f"  {at}  {f'+{event.time - before:.3f} s':>12}  {event.who:<18} {event.what}")
        before = event.time
    if ending is None:
        lines.append("  no result of it is in the archive: it is open")
    elif ending.step is None:
        lines.append("  it waits for the rest of its group, or of its batch")
    elif ending.step not in steps:
        lines.append(f"  step {ending.step} used it: {_end(ending)}")
    sys.stdout.write("\n".join(map(printable, lines)) + "\n")
    return 0


def _of_result(ending: Ending, ledger: Ledger, steps: dict[int, float]) -> Iterator[Event]:
    result = ending.result
    if isinstance(result, Failure):
        what = f"failed: {result.reason}, attempt {result.attempts} ({result.detail})"
        yield Event(result.published_at, result.actor, what)
    else:
        yield Event(result.issued_at, "learner", f"issued, for weights {ledger.issued_under(result.group)} or newer")
        again = f" (attempt {result.attempts})" if result.attempts > 1 else ""
        yield Event(result.started_at, result.actor, f"begins{again}")
        yield Event(result.first_token_at, result.actor, f"first token, of weights {result.versions[0].version}")
        versions = ", ".join(f"{span.version} ({span.end - span.start} tokens)" for span in result.versions)
        calls = ", ".join(f"{call.outcome} in {call.seconds:.1f} s" for call in result.tool_calls)
        what = f"result stored: {result.response_length} tokens, weights {versions}; reward {result.reward:g}; calls: "
        yield Event(result.published_at, result.actor, what + (calls or "none"))
    if ending.step in steps:
        yield Event(steps[ending.step], "learner", f"step {ending.step} is done: {_end(ending)}")


def _end(ending: Ending) -> str:
    ends = {
        "trained": "trained on",
        "filtered": f"filtered: {ending.reason}",
        "failed": "ended as failed",
        "unknown": "trained on or filtered, which is not known (learner.filters was changed, or no metrics of the step)",
    }
    behind = "" if ending.staleness is None else f", {counted(ending.staleness, 'version')} behind"
    return ends[ending.end] + behind


def _logged(folder: Path, ticket: int) -> Iterator[Event]:
    """Yields what logs say of the ticket."""
    needle = f'"ticket": {ticket}'.encode()
    for path in sorted(folder.glob("*.jsonl")):
        with path.open("rb") as file:
            for line in file:
                if needle not in line:
                    continue
                try:
                    record = json.loads(line)
                    if record["ticket"] == ticket:
                        at = datetime.fromisoformat(record["timestamp"]).timestamp()
                        rest = "".join(f", {name} {record[name]}" for name in record if name not in COMMON)
                        yield Event(at, str(record["id"]), f"log: {record['event']}{rest}")
                except (ValueError, KeyError, TypeError):
                    # Cut short, or no line of a role's log.
                    continue
