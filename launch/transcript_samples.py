"""Chooses a few transcripts of a run's steps for a tracker, from the archive in the run's folder, while the run is on."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import structlog

from bus.messages import Metrics, Trajectory
from bus.metrics import steps_of
from configs.schema import RunConfig
from launch.transcripts import as_plain_text, is_right
from learner.tickets.archive_tail import ArchiveChangedError, ArchiveTail
from learner.tickets.audit import Ending, Endings, ledger_of, left_out, of_unknown_end, what_was_left_out
from runtime.models import tokenizer_of
from tracking.tracker import Sample

log = structlog.get_logger()

FIRST_STEPS = 10
EVERY = 10
"""The first ten steps are sampled, then every tenth."""
EACH = 2
"""Right ones and wrong ones of a step."""
LONGEST_TEXT = 20_000
"""Characters of one transcript."""
MOST_CHANGES = 3
"""How often in a row an archive may turn out to have changed: then it is damaged."""


class TranscriptSamples:
    """Reads the archive of one run step by step. The files must be on this host; without them there are no samples.

    It reads everything from the beginning on, also on a restart: which step used a result up follows from all before.
    """

    def __init__(self, run: Path, config: RunConfig, after: int) -> None:
        """`after`: the last step of which samples are known already."""
        self._config = config
        self._folder = run / "results"
        self._after = after
        self._measured = {
            record["step"]: what_was_left_out(record) for record in steps_of(run) if record["step"] > after
        }
        self._chosen: dict[int, tuple[list[Ending], dict[str, float]]] = {}
        """Step to its samples and what its filters left out, by those that are configured; waits for its metrics."""
        self._changes = 0
        self._tokenizer: Any = None
        self._begin()

    def _begin(self) -> None:
        self._tail = ArchiveTail(self._folder)
        self._endings = Endings(ledger_of(self._config))
        self._chosen.clear()

    def note(self, measured: Iterable[Metrics]) -> None:
        """Takes the metrics of steps: only they say what a step was trained on."""
        for metrics in measured:
            if metrics.role == "learner" and metrics.step is not None and is_sampled(metrics.step):
                self._measured[metrics.step] = what_was_left_out(metrics.values)

    def read(self) -> Iterator[list[Sample]]:
        """Yields the samples of each step that is there by now with its metrics; takes as long as reading the archive does.

        Raises UserError, MessageError or ValueError where there can be no samples of this archive.
        """
        try:
            for sequence, result in self._tail.read():
                for of_step in self._endings.take(sequence, result):
                    self._choose(of_step)
                yield from self._with_metrics()
            self._changes = 0
        except ArchiveChangedError as error:
            self._changes += 1
            if self._changes > MOST_CHANGES:
                raise ValueError(f"the archive is damaged: {error}") from error
            log.info("the archive of results has changed: it is read anew", reason=str(error))
            self._begin()
        yield from self._with_metrics()

    def _choose(self, of_step: list[Ending]) -> None:
        step = of_step[0].step
        if step is None or step <= self._after or not is_sampled(step):
            return
        chosen: list[Ending] = []
        for wanted in (True, False):
            alike = (
                ending
                for ending in of_step
                if isinstance(ending.result, Trajectory) and is_right(ending.result) == wanted
            )
            chosen += [ending for _, ending in zip(range(EACH), alike, strict=False)]
        if chosen:
            self._chosen[step] = chosen, left_out(of_step)

    def _with_metrics(self) -> Iterator[list[Sample]]:
        for step in [step for step in self._chosen if step in self._measured]:
            chosen, by_filters = self._chosen.pop(step)
            is_known = by_filters == self._measured.pop(step)
            self._after = max(self._after, step)
            yield [self._sample(step, ending if is_known else of_unknown_end(ending)) for ending in chosen]

    def _sample(self, step: int, ending: Ending) -> Sample:
        if self._tokenizer is None:
            self._tokenizer = tokenizer_of(self._config.model.path)
        result = ending.result
        assert isinstance(result, Trajectory)
        text = as_plain_text(ending, self._tokenizer, emulated=self._config.emulated)
        if len(text) > LONGEST_TEXT:
            text = (
                f"{text[:LONGEST_TEXT]}\n... {len(text) - LONGEST_TEXT} more characters: zerotir transcripts has them"
            )
        return Sample(step, result.ticket, "right" if is_right(result) else "wrong", result.reward, text)


def is_sampled(step: int) -> bool:
    """Returns whether a tracker gets transcripts of a step."""
    return step <= FIRST_STEPS or step % EVERY == 0
