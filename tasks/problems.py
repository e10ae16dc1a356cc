"""Problems: where they come from, and which one each group gets.

A source is a reasoning-gym recipe, whose problems are made on the fly, a file or a Hugging Face data set (`tasks.tables`),
or a weighted mix of these. The same configuration and seed give the same problems, and the same group number the same
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
from tasks.held_out import is_held_out
from tasks.json_rows import positional
from tasks.tables import read_dataset, read_file, stem_of

MAX_DRAWS = 500
"""Draws of a recipe for one problem before it is taken to have none on the side that is asked for."""
SHOWN = 80
"""Characters of a value that an error shows."""
EXACT = 2**53
"""Up to here a float holds every integer."""


class ProblemError(UserError):
    """Problems that can't be had as configured; the text says why."""


@dataclass(frozen=True)
class Problem:
    """A question with its gold answer."""

    id: str
    text: str
    answer: str


def load_problems(config: ProblemsConfig, seed: int, *, evaluation: bool = False) -> Sequence[Problem]:
    """Returns the problems of `config`, in the source's order; `seed` chooses those of a recipe.

    A recipe gives an evaluation the problems that are held out, and training all others (`tasks.held_out`); a file or data
    set gives both the same.

    Raises ProblemError for an unknown recipe, a missing file or field, a value that is no text or number, and no data.
    """
    if config.mix:
        return _mixed(config.mix, config.size, seed, evaluation)
    if config.recipe is not None:
        return _mixed({config.recipe: MixedSource(options=config.options)}, config.size, seed, evaluation)
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


class _Recipe:
    """Draws problems of a recipe, either those that are held out or the others."""

    def __init__(self, name: str, options: dict[str, Any], size: int, seed: int, evaluation: bool) -> None:
        self._name = name
        self._evaluation = evaluation
        self._arguments = (name, options, size, seed)
        self._draws: list[Any] = [_dataset(*self._arguments, draw=0)]

    def problem(self, number: int) -> Problem:
        """Returns the problem of a number: of its draws the first that is on the right side."""
        for draw in range(MAX_DRAWS):
            if draw == len(self._draws):
                self._draws.append(_dataset(*self._arguments, draw=draw))
            entry = self._draws[draw][number]
            if is_held_out(entry["question"]) == self._evaluation:
                return Problem(id=f"{self._name}-{number}", text=entry["question"], answer=entry["answer"])
        side = "evaluation" if self._evaluation else "training"
        raise ProblemError(
            f"recipe {self._name!r} has too few problems: of {MAX_DRAWS} draws none is for {side} "
            "(a tenth of the problems is for evaluation alone)"
        )


class _MixedProblems(Sequence[Problem]):
    """Mixes sources: the one that problem `number` is from is drawn from the seed and the number.

    Recipes make the problem of that number when it is asked for; rows come in turn, again from the first after the last.
    """

    def __init__(self, recipes: dict[str, _Recipe], rows: dict[str, list[Problem]], weights: dict[str, float], size: int,
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
        return self._recipes[name].problem(number)

    def _source(self, number: int) -> str:
        [name] = Random(f"mix/{self._seed}/{number}").choices(list(self._weights), list(self._weights.values()))
        return name


def _mixed(mix: dict[str, MixedSource], size: int, seed: int, evaluation: bool) -> Sequence[Problem]:
    rows = {name: _rows(source) for name, source in mix.items() if source.file or source.dataset}
    recipes = {
        name: _Recipe(name, source.options, size, seed, evaluation) for name, source in mix.items() if name not in rows
    }
    return _MixedProblems(recipes, rows, {name: source.weight for name, source in mix.items()}, size, seed)


def _rows(source: ProblemsConfig | MixedSource) -> list[Problem]:
    name = source.file or source.dataset
    assert name is not None
    try:
        rows = read_file(Path(name)) if source.file else read_dataset(name, source.subset, source.split)
    except (OSError, ValueError) as error:
        raise ProblemError(f"{name}: {error}") from error
    return _row_problems(rows, source, name)


def _dataset(name: str, options: dict[str, Any], size: int, seed: int, draw: int) -> Any:
    """Returns reasoning-gym's data set of a recipe; each draw is another."""
    from tasks.recipes import DATASETS, create_dataset

    if name not in DATASETS:
        raise ProblemError(f"no recipe {name!r}{nearest(name, DATASETS)}")
    if reserved := {"seed", "size"} & options.keys():
        raise ProblemError(f"{reserved.pop()} is no option of a recipe: it follows from seed and tasks.problems.size")
    # Recipes seed problem i with seed + i: seeds 1 and 2 would share all problems but one unless they are spread.
    spread = Random(f"{name}/{seed}/{draw}" if draw else f"{name}/{seed}").getrandbits(31)
    try:
        dataset = create_dataset(name, **options, seed=spread, size=size)
    # Recipes check their options with assertions, and unknown ones are unexpected arguments.
    except (TypeError, ValueError, AssertionError) as error:
        raise ProblemError(f"recipe {name!r} refuses its options: {error}") from error
    if not isinstance(dataset[0]["answer"], str):
        raise ProblemError(f"recipe {name!r} has no gold answers (its problems are open-ended): choose another")
    return dataset


def _row_problems(rows: Any, config: ProblemsConfig | MixedSource, source: str) -> list[Problem]:
    if not len(rows):
        raise ProblemError(f"{source} has no rows")
    columns = getattr(rows, "column_names", None) or list(rows[0])
    for field in (config.problem_field, config.answer_field):
        if field not in columns:
            raise ProblemError(f"{source} has no field {field!r}{nearest(field, columns)}")
        if getattr(getattr(rows, "features", {}).get(field), "dtype", "") in ("float16", "float32"):
            raise ProblemError(
                f"{source}: field {field!r} holds floats of less than 64 bits, which are other numbers than were meant: "
                "store it as text"
            )
    problems = []
    for number, row in enumerate(rows):
        text, answer = (
            _text(row.get(field), field, source, number) for field in (config.problem_field, config.answer_field)
        )
        id = row.get("id")
        name = f"{stem_of(Path(source))}-{number}" if id is None or id == "" else str(id)
        problems.append(Problem(id=name, text=text, answer=answer))
    return problems


def _text(value: object, field: str, source: str, number: int) -> str:
    shown = repr(value)
    where = f"{source}, row {number}: field {field!r} is {shown if len(shown) < SHOWN else f'{shown[:SHOWN]} ...'}"
    if isinstance(value, bool) or not isinstance(value, str | int | float) or not str(value).strip():
        raise ProblemError(f"{where}, not a text or a number: store it as the text that is to be compared")
    if isinstance(value, float) and not abs(value) < EXACT:
        raise ProblemError(f"{where}: a float this large may be another number than was meant; store it as text")
    return positional(repr(value)) if isinstance(value, float) else str(value)
