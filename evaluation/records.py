"""Finished samples on disk: one JSON object a line, appended as each is graded.

A second start reads them and goes on. A last line that is half written, as a killed process leaves it, is cut off. Any other
line that cannot be read is an error and never skipped: a number computed without it would describe another evaluation.
"""

import json
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydantic import Field, NonNegativeInt, PositiveInt, ValidationError

from bus.codec import Message
from bus.messages import FinishReason, ToolCall
from configs.errors import UserError
from runtime.files import try_lock, write_whole
from transcripts.passages import Passage

Key = tuple[str, str, int, int]
"""Data set, problem, limit of tool calls, number of the sample: what identifies a sample."""


class JournalError(UserError):
    """The folder cannot take or give this evaluation's samples; the text says what to do."""


class Sample(Message):
    """One graded response."""

    data: str
    problem: str
    """The problem's id in its data set."""
    max_tool_calls: NonNegativeInt
    """Calls that were allowed."""
    number: NonNegativeInt
    reward: float
    parts: dict[str, float]
    """Parts of the reward, see `grading.grader.Grade`."""
    answer: str | None
    """What the grader took for the answer; None where it found none."""
    passages: tuple[Passage, ...]
    tool_calls: tuple[ToolCall, ...]
    refused_calls: NonNegativeInt
    finish_reason: FinishReason = Field(strict=False)
    prompt_tokens: PositiveInt
    response_tokens: NonNegativeInt
    """Sampled and inserted."""
    sampled_tokens: NonNegativeInt
    seconds: float
    """Seconds of the rollout that was graded."""
    attempts: PositiveInt
    """Those before the last were lost to infrastructure."""

    @property
    def key(self) -> Key:
        return self.data, self.problem, self.max_tool_calls, self.number

    @property
    def correct(self) -> bool:
        return self.parts["correct"] > 0


class Journal:
    """The samples of one evaluation in a folder; a context manager that keeps others out of it."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        """`settings` are what all samples of the folder must have in common, as JSON.

        Raises JournalError where the folder holds another evaluation's samples, or damaged ones, or is in use.
        """
        self.folder = folder
        self.samples: dict[Key, Sample] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "samples.jsonl"
        self._file = self._path.open("ab+")
        if not try_lock(self._file):
            self._file.close()
            raise JournalError(f"another evaluation is at work in {folder}")
        try:
            self._agree(settings)
            self._read()
        except BaseException:
            self._file.close()
            raise

    def append(self, sample: Sample) -> None:
        """Keeps a sample; it is on its way to the disk when this returns."""
        self._file.write(sample.model_dump_json().encode() + b"\n")
        self._file.flush()
        self.samples[sample.key] = sample

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def _agree(self, settings: dict[str, Any]) -> None:
        path = self.folder / "settings.json"
        # As JSON has them: tuples are lists.
        settings = json.loads(json.dumps(settings))
        if path.exists():
            begun = json.loads(path.read_text())
            if differing := _differences(begun, settings):
                raise JournalError(
                    f"the samples in {self.folder} were begun with another {', '.join(differing)}: give this evaluation a "
                    "folder of its own with --out, or remove that one"
                )
            settings = _merged(begun, settings)
        write_whole(path, json.dumps(settings, indent=1) + "\n")

    def _read(self) -> None:
        self._file.seek(0)
        whole = 0
        for number, line in enumerate(self._file, 1):
            if not line.endswith(b"\n"):
                break
            try:
                sample = Sample.model_validate_json(line)
            except ValidationError as error:
                raise JournalError(
                    f"{self._path}, line {number}, is damaged: remove the line, or the folder"
                ) from error
            self.samples.setdefault(sample.key, sample)
            whole += len(line)
        # Files open for appending write at their end, wherever they were read.
        self._file.truncate(whole)


def _differences(begun: dict[str, Any], settings: dict[str, Any], path: str = "") -> list[str]:
    """Returns the names of the settings that both have and that differ; what only one has does not."""
    differing = []
    for name in sorted(begun.keys() & settings.keys()):
        before, now = begun[name], settings[name]
        if isinstance(before, dict) and isinstance(now, dict):
            differing += _differences(before, now, f"{path}{name}.")
        elif before != now:
            differing.append(path + name)
    return differing


def _merged(begun: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    merged = {**begun, **settings}
    for name in begun.keys() & settings.keys():
        if isinstance(begun[name], dict) and isinstance(settings[name], dict):
            merged[name] = _merged(begun[name], settings[name])
    return merged
