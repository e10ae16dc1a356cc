"""The tasks' part of the schema: which problems, how they are asked, how answers are judged."""

import re
from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from configs.section import Section

Penalty = Annotated[float, Field(ge=0.0, le=1e6)]


class PromptConfig(Section):
    """Says how a problem is asked."""

    template: str = "zerotir"
    """Name of a shipped template (`zerotir`, `few-shot`, `plain`, `plain-text`, `zerotir-text`, `tiny`) or path of a text
    file that contains `{problem}` once."""
    chat: bool = False
    """Wrap the filled template as a user turn in the model's own chat template."""


RecipeOptions = dict[str, int | float | str | bool]


class MixedSource(Section):
    """One source of a mix: the recipe of the name that the mix gives it, or a file or data set."""

    weight: PositiveFloat = 1.0
    """Share of the problems, relative to the mix's other weights; each problem's source is drawn."""
    options: RecipeOptions = {}
    """Options of the recipe, passed on as they are."""
    file: str | None = None
    """A file: JSON Lines, JSON or CSV, also with `.gz`, or Parquet."""
    dataset: str | None = None
    """A Hugging Face data set: its name, or a folder with its files or that it was saved to."""
    subset: str | None = None
    """Subset of a data set that has several (the hub calls them configurations)."""
    split: str | None = None
    """Split of a data set; `train` where it is absent."""
    problem_field: str = "problem"
    """Field of a file or data set that holds the problem's text."""
    answer_field: str = "answer"
    """Field that holds the gold answer."""

    @model_validator(mode="after")
    def one_source(self) -> Self:
        if sum(map(bool, (self.file, self.dataset, self.options))) > 1:
            raise ValueError("a file, a data set and options of a recipe exclude each other")
        _check_dataset(self)
        return self


class ProblemsConfig(Section):
    """Says where problems come from; exactly one of the four sources is named."""

    recipe: str | None = None
    """A reasoning-gym recipe (`gsm_symbolic`, `products`, ...)."""
    options: RecipeOptions = {}
    """Options of the recipe, passed on as they are."""
    mix: dict[str, MixedSource] = {}
    """Several recipes, files and data sets by name, each with its weight; rows of a file or data set come in turn."""
    file: str | None = None
    """A file: JSON Lines, JSON or CSV, also with `.gz`, or Parquet."""
    dataset: str | None = None
    """A Hugging Face data set: its name, or a folder with its files or that it was saved to."""
    subset: str | None = None
    """Subset of a data set that has several (the hub calls them configurations)."""
    split: str | None = None
    """Split of a data set; `train` where it is absent."""
    problem_field: str = "problem"
    """Field of a file or data set that holds the problem's text."""
    answer_field: str = "answer"
    """Field that holds the gold answer."""
    size: PositiveInt = 10_000
    """How many problems a recipe or a mix makes; a file or data set gives all it has."""

    @model_validator(mode="after")
    def one_source(self) -> Self:
        if sum(source is not None for source in (self.recipe, self.mix or None, self.file, self.dataset)) != 1:
            raise ValueError("name exactly one of recipe, mix, file and dataset")
        if self.options and self.recipe is None:
            raise ValueError("options belong to a recipe; in a mix, to each recipe of its own")
        _check_dataset(self)
        return self


def _check_dataset(source: MixedSource | ProblemsConfig) -> None:
    if (source.subset or source.split) and source.dataset is None:
        raise ValueError("subset and split belong to a data set (dataset)")
    if source.dataset is not None and ":" in source.dataset:
        raise ValueError(f"dataset is {source.dataset!r}: name its subset and its split in fields of their own")


_REWARD_FUNCTION = re.compile(r"(.+\.py|[A-Za-z_]\w*(\.[A-Za-z_]\w*)*):[A-Za-z_]\w*")


class GradingConfig(Section):
    """Says how an answer is judged: on tokens that the model sampled, outside code blocks."""

    rule: Literal["boxed", "last_number"] = "boxed"
    """`boxed`: the last `\\boxed{}`, compared as a number or by math-verify. `last_number`: the number that the last whole
    `\\boxed{}` is, or without one the last number of the model's own text outside code."""
    answer_tag: bool = False
    """Read the answer only inside `<answer> </answer>` (the paper's templates)."""
    timeout_s: PositiveFloat = 5.0
    """Seconds of processor time that grading a response may take before its answer counts as ungradable."""
    format_penalty: Penalty = 0.0
    """Taken off the reward where there is no answer, or, with `answer_tag`, the response does not end with one `</think>`
    and one `<answer> </answer>` behind it."""
    unparsable_penalty: Penalty = 0.0
    """Taken off the reward where there is no answer or math-verify can't read it; with 1, such a response earns -1."""
    overlong_penalty: Penalty = 0.0
    """Taken off the reward where the response used up its budget, and in proportion in the last `overlong_tokens`."""
    overlong_tokens: NonNegativeInt = 0
    """Stretch before `rollout.max_response_tokens` in which the overlong penalty grows from nothing."""
    reward_function: str | None = None
    """Your own function that gives the reward, as `path/to/file.py:name` or, of an installed module, `module:name`; then
    `rule` and `answer_tag` only say which answer is shown and counted."""
    reward_function_digest: str | None = None
    """Digest of its source, filled in where it is absent: a run whose source has changed does not go on."""

    @field_validator("reward_function")
    @classmethod
    def names_a_function(cls, value: str | None) -> str | None:
        if value is not None and not _REWARD_FUNCTION.fullmatch(value):
            raise ValueError(
                f"{value!r} is no function: name it as path/to/file.py:name, or of a module as module:name"
            )
        return value

    @model_validator(mode="after")
    def one_judge(self) -> Self:
        if self.reward_function is None and self.reward_function_digest is not None:
            raise ValueError("reward_function_digest belongs to a reward_function")
        if self.reward_function is not None and (self.format_penalty or self.unparsable_penalty):
            raise ValueError("format_penalty and unparsable_penalty have no effect with a reward_function")
        return self


class TasksConfig(Section):
    """Problems, prompts and grading."""

    problems: ProblemsConfig
    prompt: PromptConfig = PromptConfig()
    grading: GradingConfig = GradingConfig()
