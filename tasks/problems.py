"""Problems: where they come from, and which one each group gets.

A source is a reasoning-gym recipe, whose problems are made on the fly, a JSON Lines or Parquet file, a Hugging Face data
set, or a weighted mix of these. The same configuration and seed give the same problems, and the same group number the same
problem, in any process at any time.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, overload

from configs.errors import UserError, nearest
from configs.tasks import MixedSource, ProblemsConfig


class ProblemError(UserError):
    """Problems that can't be had as configured; the text says why."""


@dataclass(frozen=True)
class Problem:
    """A question with its gold answer."""

    id: str
    text: str
    answer: str


def load_problems(config: ProblemsConfig, seed: int) -> Sequence[Problem]:
    """Returns the problems of `config`, in the source's order; `seed` chooses those of a recipe.

    Raises ProblemError for an unknown recipe, a missing file or field, a value that is no text or number, and no data.
    """
    if config.mix:
        return _mixed(config.mix, config.size, seed)
    if config.recipe is not None:
        return _mixed({config.recipe: MixedSource(options=config.options)}, config.size, seed)
    return _rows(config)


class ProblemOrder:
    """The problem of each group: every epoch goes through all problems, in a shuffle of its own."""

    def __init__(self, problems: Sequence[Problem], seed: int) -> None:
        if not len(problems):
            raise ProblemError("no problems to choose from")
        self._problems = problems
        self._seed = seed
        self._shuffled: tuple[int, list[int]] = (-1, [])
        """The epoch that was asked for last, and its order."""

    def __getitem__(self, group: int) -> Problem:
        """Returns the problem of group number `group`, from 0.

        A function of the problems, the seed and the number alone.
        """
        if group < 0:
            raise IndexError(f"there is no group {group}")
        epoch, position = divmod(group, len(self._problems))
        if self._shuffled[0] != epoch:
            order = list(range(len(self._problems)))
            # A seed of text is hashed whole, so that neighbouring seeds and epochs have unrelated orders.
            Random(f"{self._seed}/{epoch}").shuffle(order)
            self._shuffled = (epoch, order)
        return self._problems[self._shuffled[1][position]]


class _MixedProblems(Sequence[Problem]):
    """Mixes sources: the one that problem `number` is from is drawn from the seed and the number.

    Recipes make the problem of that number when it is asked for; rows come in turn, again from the first after the last.
    """

    def __init__(self, recipes: dict[str, Any], rows: dict[str, list[Problem]], weights: dict[str, float], size: int,
                 seed: int) -> None:  # fmt: skip
        self._recipes = recipes
        self._rows = rows
        self._weights = weights
        self._size = size
        self._seed = seed
        self._turns: dict[int, int] = {}
        """For each number that is a row: how many rows of its source come before it."""
        counts = Counter[str]()
        for number in range(size if rows else 0):
            name = self._source(number)
            self._turns[number] = counts[name]
            counts[name] += 1

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, index: int) -> Problem: ...
    @overload
    def __getitem__(self, index: slice) -> list[Problem]: ...
    def __getitem__(self, index: int | slice) -> Problem | list[Problem]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        name = self._source(number)
        if name in self._rows:
            return self._rows[name][self._turns[number] % len(self._rows[name])]
        entry = self._recipes[name][number]
        return Problem(id=f"{name}-{number}", text=entry["question"], answer=entry["answer"])

    def _source(self, number: int) -> str:
        [name] = Random(f"mix/{self._seed}/{number}").choices(list(self._weights), list(self._weights.values()))
        return name


def _mixed(mix: dict[str, MixedSource], size: int, seed: int) -> Sequence[Problem]:
    rows = {name: _rows(source) for name, source in mix.items() if source.file or source.dataset}
    recipes = {name: _recipe(name, source.options, size, seed) for name, source in mix.items() if name not in rows}
    return _MixedProblems(recipes, rows, {name: source.weight for name, source in mix.items()}, size, seed)


def _rows(source: ProblemsConfig | MixedSource) -> list[Problem]:
    if source.file is not None:
        return _row_problems(_load_file(Path(source.file)), source, source.file)
    assert source.dataset is not None
    return _row_problems(_load_dataset(source.dataset), source, source.dataset)


def _recipe(name: str, options: dict[str, Any], size: int, seed: int) -> Any:
    from tasks.recipes import DATASETS, create_dataset

    if name not in DATASETS:
        raise ProblemError(f"no recipe {name!r}{nearest(name, DATASETS)}")
    if reserved := {"seed", "size"} & options.keys():
        raise ProblemError(f"{reserved.pop()} is no option of a recipe: it follows from seed and tasks.problems.size")
    # Recipes seed problem i with seed + i: seeds 1 and 2 would share all problems but one unless they are spread.
    spread = Random(f"{name}/{seed}").getrandbits(31)
    try:
        dataset = create_dataset(name, **options, seed=spread, size=size)
    # Recipes check their options with assertions, and unknown ones are unexpected arguments.
    except (TypeError, ValueError, AssertionError) as error:
        raise ProblemError(f"recipe {name!r} refuses its options: {error}") from error
    if not isinstance(dataset[0]["answer"], str):
        raise ProblemError(f"recipe {name!r} has no gold answers (its problems are open-ended): choose another")
    return dataset


def _load_file(path: Path) -> Any:
    from datasets import Dataset, disable_progress_bars
    from datasets.exceptions import DatasetGenerationError

    disable_progress_bars()
    readers = {".jsonl": Dataset.from_json, ".json": Dataset.from_json, ".parquet": Dataset.from_parquet}
    if not path.is_file():
        raise ProblemError(f"no file {path} (relative to {Path.cwd()})")
    if path.suffix not in readers:
        raise ProblemError(f"{path} is of no known kind: expected one of {', '.join(readers)}")
    if path.stat().st_size == 0:
        raise ProblemError(f"{path} is empty")
    try:
        return readers[path.suffix](str(path))
    except DatasetGenerationError as error:
        raise ProblemError(f"{path} can't be read: {error.__cause__ or error}") from error


def _load_dataset(name: str) -> Any:
    from datasets import disable_progress_bars, load_dataset
    from datasets.exceptions import DatasetsError

    disable_progress_bars()
    path, _, split = name.partition(":")
    try:
        return load_dataset(path, split=split or "train")
    # A missing set or host is an OSError, an unknown split a ValueError.
    except (DatasetsError, OSError, ValueError) as error:
        raise ProblemError(f"data set {path!r}, split {split or 'train'!r}: {error}") from error


def _row_problems(rows: Any, config: ProblemsConfig | MixedSource, source: str) -> list[Problem]:
    if not len(rows):
        raise ProblemError(f"{source} has no rows")
    for field in (config.problem_field, config.answer_field):
        if field not in rows.column_names:
            raise ProblemError(f"{source} has no field {field!r}{nearest(field, rows.column_names)}")
    problems = []
    for number, row in enumerate(rows):
        text, answer = (
            _text(row[field], field, source, number) for field in (config.problem_field, config.answer_field)
        )
        problems.append(Problem(id=str(row.get("id") or f"{Path(source).stem}-{number}"), text=text, answer=answer))
    return problems


def _text(value: object, field: str, source: str, number: int) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float) or not str(value).strip():
        raise ProblemError(f"{source}, row {number}: field {field!r} is {value!r}, not a text or a number")
    return str(value)
