"""Plans an evaluation: data sets x problems x limits of tool calls x samples, as a list of jobs.

The jobs go through all data sets and limits at once, in proportion, so that what is known after a part of the time stands
for the whole, and so does the time that is left. The samples of a problem are neighbours: the engine shares its prompt.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from configs.names import to_name
from configs.schema import EvaluationConfig, EvaluationData, RolloutConfig, RunConfig
from configs.tasks import GradingConfig, ProblemsConfig, PromptConfig
from evaluation.records import Key
from tasks.overlap import refuse_overlap
from tasks.problems import Problem, ProblemError, load_problems
from tasks.tables import kind_of, stem_of

log = structlog.get_logger()


@dataclass(frozen=True)
class DataSet:
    """The problems that are asked of one source."""

    name: str
    problems: tuple[Problem, ...]
    grading: GradingConfig
    digest: str
    """Digest of all its problems, asked or not."""


@dataclass(frozen=True)
class Job:
    """One sample to be had."""

    data: DataSet
    problem: Problem
    max_tool_calls: int
    number: int

    @property
    def key(self) -> Key:
        return self.data.name, self.problem.id, self.max_tool_calls, self.number


@dataclass(frozen=True)
class Plan:
    """A whole evaluation."""

    data: tuple[DataSet, ...]
    max_tool_calls: tuple[int, ...]
    samples: int
    """k, of each problem under each limit."""
    prompt: PromptConfig
    template: str
    """The prompt's text."""
    rollout: RolloutConfig
    """Limits and sampling of every sample, but for `max_tool_calls`, which is the job's."""

    def jobs(self) -> list[Job]:
        """Returns all samples, in the order in which they are begun."""
        placed = [
            ((index + 0.5) / len(data.problems), Job(data, problem, limit, number))
            for data in self.data
            for index, problem in enumerate(data.problems)
            for limit in self.max_tool_calls
            for number in range(self.samples)
        ]
        return [job for _, job in sorted(placed, key=lambda pair: pair[0])]

    def limits(self, job: Job) -> RolloutConfig:
        """Returns the limits and sampling of a job's rollout."""
        return self.rollout.model_copy(update={"max_tool_calls": job.max_tool_calls})

    def settings(self, weights: str) -> dict[str, Any]:
        """Returns what every sample of this evaluation has in common; `weights` says of which weights it is.

        More samples, limits, problems and data sets can be added to an evaluation; these cannot be changed.
        """
        return {
            "weights": weights,
            "prompt": {**self.prompt.model_dump(mode="json"), "text": self.template},
            "rollout": self.rollout.model_dump(mode="json", exclude={"max_tool_calls"}),
            "data": {
                data.name: {"digest": data.digest, "grading": data.grading.model_dump(mode="json")}
                for data in self.data
            },
        }


def choose(
    config: RunConfig, data: Sequence[str], max_tool_calls: Sequence[int], samples: int | None, limit: int | None
) -> EvaluationConfig:
    """Returns the configuration's evaluation with what the command line says instead; what is empty or None stays as it is.

    Each of `data` is the name of one of the configuration's data sets, a file, or a Hugging Face data set as `NAME`,
    `NAME:SPLIT` or `NAME:SUBSET:SPLIT`. Raises ProblemError for two of one name, and for more parts.
    """
    chosen = config.evaluation
    changes: dict[str, Any] = {}
    if data:
        named = [(text, chosen.data[text]) if text in chosen.data else _source(text) for text in data]
        if len({name for name, _ in named}) < len(named):
            raise ProblemError(f"two data sets have one name: {', '.join(name for name, _ in named)}")
        changes["data"] = dict(named)
    if max_tool_calls:
        changes["max_tool_calls"] = tuple(dict.fromkeys(max_tool_calls))
    if samples is not None:
        changes["samples"] = samples
    chosen = chosen.model_copy(update=changes)
    if limit is not None:
        sources = chosen.data or _own(config)
        limited = {name: source.model_copy(update={"limit": limit}) for name, source in sources.items()}
        chosen = chosen.model_copy(update={"data": limited})
    return chosen


def make_plan(config: RunConfig, chosen: EvaluationConfig, template: str) -> Plan:
    """Loads the problems, which are asked with the text `template`.

    Raises ProblemError for what `load_problems` does and for two problems of one id.
    """
    sampling = {"temperature": chosen.temperature, "top_p": chosen.top_p}
    return Plan(
        data=tuple(_load(config, name, source) for name, source in (chosen.data or _own(config)).items()),
        max_tool_calls=tuple(sorted(chosen.max_tool_calls or (config.rollout.max_tool_calls,))),
        samples=chosen.samples,
        prompt=config.tasks.prompt,
        template=template,
        rollout=config.rollout.model_copy(update={k: v for k, v in sampling.items() if v is not None}),
    )


def refuse_known(config: RunConfig, plan: Plan, *, required: bool = True) -> None:
    """Raises ProblemError where a file, data set or mix of the plan shares problems with what `config` trains on.

    A recipe shares none: it holds some of its problems out. The source of the training problems itself is let through, with
    a warning. Where the training problems cannot be had, that is a ProblemError too if `required`, else a warning.
    """
    asked = []
    for data in plan.data:
        source = config.evaluation.data.get(data.name)
        if source is None or isinstance(source, _OwnData):
            if _has_rows(config.tasks.problems):
                log.warning(f"{data.name} is what the run trains on: this measures what was learned by heart as well")
        elif source.file or source.dataset or source.mix:
            asked.append(data)
    if not asked:
        return
    try:
        training = load_problems(config.tasks.problems, config.seed)
    except ProblemError as error:
        if required:
            raise
        log.warning(f"what is asked was not compared with the training problems: {error}")
        return
    for data in asked:
        refuse_overlap(training, data.problems, data.name)


_DATASET = re.compile(r"([^:]+)(?::([^:\[\]]+)(?=:))?(?::([^:\[\]]+(?:\[[^\]]*\])?))?")
"""A name, a subset and a split; the split may be a slice, as `train[:100]`."""


class _OwnData(EvaluationData):
    """The source that the run trains on, where the user has named none."""


def _has_rows(source: ProblemsConfig) -> bool:
    return bool(source.file or source.dataset) or any(each.file or each.dataset for each in source.mix.values())


def _source(text: str) -> tuple[str, EvaluationData]:
    path = Path(text)
    if kind_of(path) or path.is_file():
        if not path.is_file():
            raise ProblemError(f"{text}: there is no such file here ({Path.cwd()})")
        return to_name(stem_of(path)), EvaluationData(file=text)
    parts = _DATASET.fullmatch(text)
    if parts is None:
        raise ProblemError(f"{text!r} is no data set: write NAME, NAME:SPLIT or NAME:SUBSET:SPLIT")
    name, subset, split = parts.groups()
    own = ":".join(part for part in (name.rstrip("/").rpartition("/")[2], subset, split) if part)
    return to_name(own), EvaluationData(dataset=name, subset=subset, split=split)


def _own(config: RunConfig) -> dict[str, EvaluationData]:
    """Returns the source that the run trains on."""
    problems = config.tasks.problems
    name = problems.recipe or (problems.file and stem_of(Path(problems.file))) or problems.dataset or "mix"
    return {to_name(name): _OwnData(**problems.model_dump())}


def _load(config: RunConfig, name: str, source: EvaluationData) -> DataSet:
    problems = load_problems(source, config.seed, evaluation=True)
    everything = list(problems) if source.file or source.dataset else list(problems[: source.limit])
    if len({problem.id for problem in everything}) < len(everything):
        ids = [problem.id for problem in everything]
        twice = next(id for id in ids if ids.count(id) > 1)
        raise ProblemError(f"data set {name!r} has two problems of id {twice!r}")
    digest = hashlib.sha256()
    if source.file or source.dataset:
        digest.update(repr([(problem.id, problem.text, problem.answer) for problem in everything]).encode())
    else:
        # A recipe makes as many as are asked, each from its options, the seed and its number.
        digest.update(f"{config.seed} {source.model_dump_json(include={'recipe', 'options', 'mix'})}".encode())
    grading = config.tasks.grading
    if source.rule is not None:
        by_rule = {"rule": source.rule, "reward_function": None, "reward_function_digest": None}
        grading = grading.model_copy(update=by_rule)
    return DataSet(name, tuple(everything[: source.limit]), grading, digest.hexdigest()[:16])
