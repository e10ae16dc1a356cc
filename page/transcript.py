"""A transcript as the page draws it: pieces of text, and what there is to know of each token."""

import contextlib
import threading
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from bus.codec import MessageError
from bus.messages import Failure, Trajectory
from configs.errors import UserError
from learner.tickets.token_values import TokenValues, read_values, values_path
from runtime.models import tokenizer_of

STEPS_AT_HAND = 4
"""Steps whose values are kept: people look at one step at a time."""


class Transcripts:
    """Draws the results of one run. Its methods may be called from any thread."""

    def __init__(self, run: Path, model: str) -> None:
        """`model` is the configuration's `model.path`, of which only the tokenizer is read, when it is needed."""
        self._folder = run / "tokens"
        self._model = model
        self._lock = threading.Lock()
        self._tokenizer: Any = None
        self._is_prepared = False
        self._values = lru_cache(STEPS_AT_HAND)(self._read)

    def draw(self, row: dict[str, Any], result: Trajectory | Failure) -> dict[str, Any]:
        """Returns a result for the page.

        `advantages` and `log_ratios` have a number for each token of the response, None where it was inserted; they are None
        where the step that used the result did not train on it, or has left no file. Raises ModelError, or
        ModuleNotFoundError where the packages that read tokens are not installed.
        """
        if isinstance(result, Failure):
            return row | {"detail": result.detail}
        # A host that only shows curves need not have what they import.
        from transcripts.tokens import drawn
        from transcripts.typeset import formulas

        tokenizer = self._tokenizer_of()
        prompt = tokenizer.decode(result.tokens[: result.prompt_length].tolist(), clean_up_tokenization_spaces=False)
        values = self._of(row, result)
        return row | {
            "prompt": prompt,
            "marks": formulas(prompt),
            "gold": result.gold_answer,
            "answer": result.answer,
            "parts": result.reward_parts,
            "pieces": list(drawn(result, tokenizer)),
            "advantages": None if values is None else _spread(values.advantages, result),
            "log_ratios": None if values is None else _spread(values.log_ratios, result),
        }

    def with_advantages(self, rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """Returns rows of results, each with the mean and the largest size of its tokens' advantages.

        They are None where the step did not train on it, or has left no file. `values_of` tells trainings of a step apart.
        """
        found = []
        for row in rows:
            mean = largest = None
            if (values := self._values_of(row)) is not None:
                advantages = values.advantages.astype(np.float64)
                mean, largest = _number(float(advantages.mean())), _number(float(np.abs(advantages).max()))
            found.append(
                row | {"advantage": mean, "largest_advantage": largest, "values_of": self._made_at(row["step"])}
            )
        return found

    def prepare(self) -> None:
        """Begins to load the tokenizer, so that the first transcript need not wait for it, unless it was begun before."""
        if not self._is_prepared:
            self._is_prepared = True
            threading.Thread(target=self._prepare, daemon=True).start()

    def _prepare(self) -> None:
        # What is wrong is told by the first transcript.
        with contextlib.suppress(UserError, ModuleNotFoundError):
            self._tokenizer_of()

    def _tokenizer_of(self) -> Any:
        with self._lock:
            if self._tokenizer is None:
                self._tokenizer = tokenizer_of(self._model)
            return self._tokenizer

    def _of(self, row: dict[str, Any], result: Trajectory) -> TokenValues | None:
        values = self._values_of(row)
        return values if values is not None and len(values.log_ratios) == int(result.loss_mask.sum()) else None

    def _values_of(self, row: dict[str, Any]) -> TokenValues | None:
        step = row["step"]
        if step is None or row["end"] not in ("trained", "unknown"):
            return None
        try:
            values = self._values(step, self._made_at(step)).get(row["ticket"])
        except (OSError, MessageError):
            return None
        return values if values is not None and values.published_at == row["published_at"] else None

    def _made_at(self, step: int | None) -> str:
        """Returns when the file of a step was written, as text; an empty one where there is none."""
        try:
            return "" if step is None else str(values_path(self._folder, step).stat().st_mtime_ns)
        except OSError:
            return ""

    def _read(self, step: int, made_at: str) -> dict[int, TokenValues]:
        return read_values(self._folder, step)


def _spread(values: np.ndarray, result: Trajectory) -> list[float | None]:
    """Returns [R]: the values of sampled tokens at their places."""
    sampled = np.flatnonzero(result.loss_mask)
    spread: list[float | None] = [None] * result.response_length
    for place, value in zip(sampled.tolist(), np.broadcast_to(values, sampled.shape).tolist(), strict=True):
        spread[place] = _number(value)
    return spread


def _number(value: float) -> float | None:
    return float(f"{value:.4g}") if np.isfinite(value) else None
