"""The results of one run, for people who look for some of them: an index of its archive.

    archive ─▶ what became of each ─▶ a row for each, in a database that SQLite keeps in a file of its own until the end

A row says where its result stands; the tokens stay in the archive. The archive is read on when somebody asks, in a thread,
and what there is so far is shown meanwhile. Reading costs as much as `zerotir transcripts` of the whole run, once. Memory
does not grow with the archive: it holds a few batches.
"""

import json
import re
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import structlog

from bus.messages import Failure, FinishReason, Metrics, Trajectory
from configs.schema import RunConfig
from learner.tickets.archive_tail import ArchiveChangedError, ArchiveTail, Place, result_at
from learner.tickets.audit import Ending, Endings, ledger_of, left_out, what_was_left_out

log = structlog.get_logger()

WAITING = 2**53
"""Stands for the step of a result that waits for its group or batch: it comes after all others."""
MOST_CHANGES = 3
"""Changes in a row that an archive may turn out to have had; after more it counts as damaged."""
PAGE = 50
"""Results of a page."""
MOST_BARS = 256
"""Results whose lives are shown at once."""

COLUMNS = (
    *("ticket", "sequence", "file", "place", "group_number", "step", "ending", "reason", "known", "problem", "actor"),
    *("attempts", "correct", "reward", "calls", "failed_calls", "made_up", "length", "cut", "staleness", "issued_at"),
    *("started_at", "first_token_at", "published_at", "versions", "searched"),
)
OF_KNOWN_END = "(known OR ending IN ('failed', 'waiting'))"
END = f"CASE WHEN {OF_KNOWN_END} THEN ending ELSE 'unknown' END"
REASON = f"CASE WHEN {OF_KNOWN_END} THEN reason END"
"""Which filter a result was left out by is not known where its end is not."""
VERDICTS = {"right": "correct = 1", "wrong": "correct = 0"}
CODE = {"used": "calls > 0", "none": "calls = 0", "failed": "failed_calls > 0", "made-up": "made_up > 0"}


class Wanted(NamedTuple):
    """Says which results somebody looks for; what is empty allows all."""

    step: int | None = None
    end: str = ""
    """One of those of `learner.tickets.audit.Ending.end`."""
    reason: str = ""
    verdict: str = ""
    """A key of `VERDICTS`."""
    code: str = ""
    """A key of `CODE`."""
    search: str = ""
    """Part of a problem's id or an actor's, or the number of a ticket."""


class Step(NamedTuple):
    """Holds what the metrics of a step say."""

    left_out: dict[str, float]
    done_at: float
    taken_at: float | None
    """When its batch was complete and training began; None where that was not measured."""


class Results:
    """Indexes the results of one run. Its methods may be called from any thread."""

    def __init__(self, run: Path, config: RunConfig, reread: Callable[[], RunConfig | None] = lambda: None) -> None:
        """Indexes what a run's folder holds, which need not be anything yet.

        Args:
            run: the folder.
            config: the run's configuration: its filters say what became of results.
            reread: reads it again; a learner that goes on may have got other filters.
        """
        self._folder = run / "results"
        self._config = config
        self._reread = reread
        self._file = run / "config.yaml"
        self._changed_at = self._file.stat().st_mtime_ns if self._file.exists() else 0
        self._lock = threading.Lock()
        """Guards everything below."""
        self._reading = threading.Lock()
        self._database = sqlite3.connect("", check_same_thread=False, isolation_level=None)
        self._database.row_factory = sqlite3.Row
        self._database.executescript(
            f"""PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;
            CREATE TABLE results ({", ".join(COLUMNS).replace("ticket", "ticket INTEGER PRIMARY KEY", 1)});
            CREATE INDEX by_step ON results (step DESC, ticket);
            CREATE INDEX by_group ON results (group_number);"""
        )
        self._steps: dict[int, Step] = {}
        self._by_filters: dict[int, dict[str, float]] = {}
        """Step to what its filters left out, by those that are configured."""
        self._last_noted = 0
        self._is_whole = False
        """The end of the archive was come to."""
        self._changes = 0
        self.trouble = ""
        """Why no more results can be read."""
        self._begin()

    def _begin(self) -> None:
        self._tail = ArchiveTail(self._folder)
        self._endings = Endings(ledger_of(self._config))
        self._by_filters.clear()
        self._is_whole = False
        self._database.execute("DELETE FROM results")

    def note(self, metrics: Metrics) -> None:
        """Takes a step's metrics: only they say whether a step trained on what its results and filters lead to."""
        if metrics.role != "learner" or metrics.step is None:
            return
        with self._lock:
            if metrics.step <= self._last_noted:
                # What came behind it is trained again as well.
                self._steps = {number: step for number, step in self._steps.items() if number < metrics.step}
                self._database.execute("UPDATE results SET known = FALSE WHERE step >= ?", (metrics.step,))
            self._last_noted = metrics.step
            self._steps[metrics.step] = _step(metrics)
            self._settle(metrics.step)

    def _settle(self, step: int) -> None:
        if step in self._steps and step in self._by_filters:
            known = self._steps[step].left_out == self._by_filters[step]
            self._database.execute("UPDATE results SET known = ? WHERE step = ?", (known, step))

    @property
    def is_reading(self) -> bool:
        """Returns whether the archive is being read."""
        return self._reading.locked()

    def read(self) -> None:
        """Reads what the archive has got since the last time; returns at once where another thread does."""
        if self.trouble or not self._reading.acquire(blocking=False):
            return
        try:
            self._look_at_configuration()
            for _, result in self._tail.read():
                with self._lock:
                    self._take(result)
            self._changes = 0
            self._is_whole = True
        except (ArchiveChangedError, OSError) as error:
            self._changes += 1
            if self._changes > MOST_CHANGES:
                self._give_up(f"the archive cannot be read further; what comes before is shown: {error}")
                return
            log.info("the archive of results has changed: it is read anew", reason=str(error))
            with self._lock:
                self._begin()
        except ValueError as error:
            self._give_up(f"the archive cannot be read further; what comes before is shown: {error}")
        except sqlite3.Error as error:
            why = "give its temporary folder room and start the page again"
            self._give_up(f"no more results can be indexed ({error}): {why}")
        finally:
            self._reading.release()

    def _give_up(self, trouble: str) -> None:
        self.trouble, self._is_whole = trouble, True

    def _look_at_configuration(self) -> None:
        """Begins anew where the configuration has changed so that results may have ended otherwise."""
        changed_at = self._file.stat().st_mtime_ns if self._file.exists() else 0
        if changed_at == self._changed_at:
            return
        self._changed_at = changed_at
        config = self._reread()
        if config is not None and config.learner != self._config.learner:
            self._config = config
            with self._lock:
                self._begin()

    def _take(self, result: Trajectory | Failure) -> None:
        place = self._tail.place
        assert place is not None
        row = _row(result, place)
        names, values = ", ".join(row), ", ".join(f":{name}" for name in row)
        self._database.execute(f"INSERT OR REPLACE INTO results ({names}) VALUES ({values})", row)  # noqa: S608
        for of_step in self._endings.take(place.sequence, result):
            self._database.executemany(
                "UPDATE results SET step = ?, ending = ?, reason = ?, staleness = ? WHERE ticket = ?",
                [(each.step, each.end, each.reason, each.staleness, each.result.ticket) for each in of_step],
            )
            step = of_step[0].step
            assert step is not None
            self._by_filters[step] = left_out(of_step)
            self._settle(step)

    def find(self, wanted: Wanted, page: int) -> dict[str, Any]:
        """Returns a page of the results that are wanted, the newest step first, and how many of them there are."""
        where, values = _where(wanted)
        with self._lock:
            if not self._is_whole:
                # What waits at the place that was come to may have been used long ago.
                where += f" AND step < {WAITING}"
            total, right = self._database.execute(
                f"SELECT COUNT(*), COALESCE(SUM(correct), 0) FROM results WHERE {where}",  # noqa: S608
                values,
            ).fetchone()
            rows = self._rows(f"{where} ORDER BY step DESC, ticket LIMIT {PAGE} OFFSET {page * PAGE}", values)
        return {"total": total, "right": right, "pages": -(-total // PAGE), "rows": rows}

    def reasons(self) -> list[tuple[str, str, int]]:
        """Returns how many results ended for which reason: (end, reason, number), the most frequent first."""
        with self._lock:
            found = self._database.execute(
                f"SELECT {END}, COALESCE({REASON}, ''), COUNT(*) FROM results GROUP BY 1, 2 ORDER BY 3 DESC LIMIT 100"  # noqa: S608
            )
            return [tuple(each) for each in found]

    def group(self, number: int) -> list[dict[str, Any]]:
        """Returns the results of a group, in the order of their tickets."""
        with self._lock:
            return self._rows("group_number = ? ORDER BY ticket", (number,))

    def lives(self, step: int, page: int) -> dict[str, Any]:
        """Returns the results that a step used, by when they began; and when each version was there.

        Versions are those that were current between the first ticket's issue and the step.
        """
        with self._lock:
            total, first = self._database.execute(
                "SELECT COUNT(*), MIN(issued_at) FROM results WHERE step = ?", (step,)
            ).fetchone()
            order = "COALESCE(started_at, published_at), ticket"
            rows = self._rows(f"step = ? ORDER BY {order} LIMIT {MOST_BARS} OFFSET {page * MOST_BARS}", (step,))
            last = self._steps.get(step)
            made = sorted((each.done_at, number) for number, each in self._steps.items() if number <= step)
        versions = [(number, time) for time, number in made if first is not None and time >= first]
        return {
            "total": total,
            "pages": -(-total // MOST_BARS),
            "rows": rows,
            "taken_at": last.taken_at if last else None,
            "trained_at": last.done_at if last else None,
            "versions": versions[-MOST_BARS:],
        }

    def _rows(self, where: str, values: Mapping[str, Any] | tuple[Any, ...]) -> list[dict[str, Any]]:
        hidden = ("sequence", "file", "place", "known", "ending", "reason", "searched")
        names = [*(name for name in COLUMNS if name not in hidden), f"{END} AS ending", f"{REASON} AS reason"]
        found = self._database.execute(f"SELECT {', '.join(names)} FROM results WHERE {where}", values)  # noqa: S608
        return [_shown(dict(row)) for row in found]

    def result(self, ticket: int) -> tuple[dict[str, Any], Trajectory | Failure] | None:
        """Returns a ticket's row and result; None where there is none. Raises ArchiveChangedError."""
        with self._lock:
            rows = self._rows("ticket = ?", (ticket,))
            where = "SELECT file, place, sequence FROM results WHERE ticket = ?"
            place = self._database.execute(where, (ticket,)).fetchone()
        if place is None:
            return None
        return rows[0], result_at(Place(self._folder / place["file"], place["place"], place["sequence"]))


def _step(metrics: Metrics) -> Step:
    values = metrics.values
    took = None
    if {"step_seconds", "wait_seconds"} <= values.keys():
        took = values["step_seconds"] - values["wait_seconds"]
    return Step(what_was_left_out(values), metrics.time, None if took is None else metrics.time - took)


def _row(result: Trajectory | Failure, place: Place) -> dict[str, Any]:
    ending = Ending(place.sequence, result, None, result.reason if isinstance(result, Failure) else None)
    row = {
        "ticket": result.ticket,
        "sequence": place.sequence,
        "file": place.path.name,
        "place": place.begin,
        "group_number": result.group,
        "step": WAITING,
        "ending": ending.end,
        "reason": ending.reason,
        "known": False,
        "actor": result.actor,
        "attempts": result.attempts,
        "length": result.response_length,
        "published_at": result.published_at,
        "searched": result.actor.casefold(),
    }
    if isinstance(result, Failure):
        return row
    return row | {
        "problem": result.problem_id,
        "searched": f"{result.problem_id}\n{result.actor}".casefold(),
        "correct": result.reward_parts.get("correct", 0.0) > 0,
        "reward": result.reward,
        "calls": len(result.tool_calls),
        "failed_calls": sum(not call.success for call in result.tool_calls),
        "made_up": result.hallucinated_outputs,
        "cut": result.finish_reason is FinishReason.LENGTH,
        "issued_at": result.issued_at,
        "started_at": result.started_at,
        "first_token_at": result.first_token_at,
        "versions": json.dumps([[str(span.version), span.start, span.end] for span in result.versions]),
    }


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    """Returns a row of the database as JSON has it."""
    row["group"], row["end"] = row.pop("group_number"), row.pop("ending")
    row["step"] = None if row["step"] == WAITING else row["step"]
    row["versions"] = json.loads(row["versions"] or "[]")
    for name in ("correct", "cut"):
        row[name] = None if row[name] is None else bool(row[name])
    return row


def _where(wanted: Wanted) -> tuple[str, dict[str, Any]]:
    """Returns a condition, made of words that stand in this file, and the values for its placeholders."""
    return " AND ".join(["TRUE", *_conditions(wanted)]), {
        **wanted._asdict(),
        "search": wanted.search.casefold(),
        "ticket": int(wanted.search) if re.fullmatch(r"[0-9]{1,16}", wanted.search) else -1,
    }


def _conditions(wanted: Wanted) -> Iterator[str]:
    if wanted.step is not None:
        yield "step = :step"
    if wanted.end:
        yield f"{END} = :end"
    if wanted.reason:
        yield f"{REASON} = :reason"
    if wanted.verdict in VERDICTS:
        yield VERDICTS[wanted.verdict]
    if wanted.code in CODE:
        yield CODE[wanted.code]
    if wanted.search:
        yield "(instr(searched, :search) OR ticket = :ticket)"
