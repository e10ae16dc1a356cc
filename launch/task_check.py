"""Checks template, prompts and gold answers of a run before its model is loaded: if none works, no step can train."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import structlog

from configs.schema import RunConfig
from grading.errors import NoRewardError, RewardFunctionError, UngradableError
from grading.grader import Grade, Grader, gold_turns
from grading.reward_function import Call
from runtime.models import PREPARED, ModelError, load_tokenizer, model_folder
from tasks.problems import Problem, ProblemError, ProblemOrder, load_problems
from tasks.prompts import PromptError, load_template, render_prompt

log = structlog.get_logger()

LAST_TOKENS = 8
SHOWN = 400
"""Characters of a prompt that are shown."""
SAMPLE = 64
"""Problems that are looked at: the run's first ones."""
SAMPLE_OF_FUNCTIONS = 8
"""The same with a reward function, which may take long."""


async def require_usable_tasks(config: RunConfig, template: str, order: ProblemOrder, model: Path) -> None:
    """Raises ProblemError where no problem of a sample could be trained on; warns where some could not.

    Args:
        template: the prompt's text, with its placeholder.
        order: the run's problems.
        model: a folder with the model's tokenizer.

    Raises ModelError where there is no tokenizer.
    """
    grading = config.tasks.grading
    sample = SAMPLE if grading.reward_function is None else SAMPLE_OF_FUNCTIONS
    problems = [order[group] for group in range(min(sample, config.learner.steps * config.learner.batch_groups))]
    reasons = await asyncio.to_thread(_unusable_prompts, config, template, problems, model)
    async with Grader(grading=grading) as grader:
        for number, problem in enumerate(problems):
            try:
                if grading.reward_function is not None:
                    await grader.grade(
                        gold_turns(problem.answer, grading), problem.answer, grading, problem=problem.text
                    )
                await grader.require_gradable(problem.answer, grading)
            except NoRewardError as error:
                reasons.setdefault(number, f"{error}, for a response that is the gold answer in a box")
            except UngradableError as error:
                reasons.setdefault(number, str(error))
    if not reasons:
        return
    [(reason, _)] = Counter(reasons.values()).most_common(1)
    text = f"{len(reasons)} of {len(problems)} problems cannot be trained on, for instance: {reason}"
    if len(reasons) == len(problems):
        raise ProblemError(text)
    log.warning(f"{text}; their tickets will fail", problems=sorted({problems[number].id for number in reasons})[:10])


def _unusable_prompts(config: RunConfig, template: str, problems: Sequence[Problem], model: Path) -> dict[int, str]:
    """Returns why some problems cannot be asked, by their positions."""
    tokenizer, limit = load_tokenizer(model), config.rollout.max_prompt_tokens
    found = {}
    for number, problem in enumerate(problems):
        try:
            length = len(render_prompt(template, problem.text, tokenizer, chat=config.tasks.prompt.chat))
        except PromptError as error:
            found[number] = str(error)
            continue
        if length > limit:
            found[number] = f"the prompt of {problem.id} has {length} tokens, rollout.max_prompt_tokens is {limit}"
    return found


def prompt_sample(config: RunConfig) -> str:
    """Returns the run's first prompt for people, and its last tokens one by one: what the model reads before it writes.

    Raises ProblemError and PromptError where there is none.
    """
    problem = ProblemOrder(load_problems(config.tasks.problems, config.seed), config.seed)[0]
    template = load_template(config.tasks.prompt.template)
    path = config.model.path
    try:
        tokenizer = load_tokenizer(model_folder(path) if path in PREPARED else Path(path).expanduser())
    except ModelError as error:
        return f"  prompt     not shown: {error}"
    tokens = render_prompt(template, problem.text, tokenizer, chat=config.tasks.prompt.chat)
    last = " ".join(repr(tokenizer.decode([token])) for token in tokens[-LAST_TOKENS:])
    text = tokenizer.decode(tokens)
    shown = text if len(text) <= SHOWN else f"{text[: SHOWN // 2]} ... {text[-SHOWN // 2 :]}"
    return f"  prompt     {len(tokens)} tokens: {shown!r}\n             the last ones: {last}"


def reward_sample(config: RunConfig) -> str:
    """Returns what the user's reward function says of the run's first problem, for people; nothing without such a function.

    Raises ProblemError where there is no problem, RewardFunctionError where the function does not work.
    """
    grading = config.tasks.grading
    if grading.reward_function is None:
        return ""
    problem = ProblemOrder(load_problems(config.tasks.problems, config.seed), config.seed)[0]

    gold = problem.answer
    ran = Call(f"print({gold!r})", f"{gold}\n", "exited", success=True, error="", seconds=0.1)
    responses: dict[str, tuple[list[str], list[Call]]] = {
        "the gold answer in a box": (gold_turns(gold, grading), []),
        "the same after a program that printed it": (
            [f"```python\n{ran.code}\n```", *gold_turns(gold, grading)],
            [ran],
        ),
        "an empty response": ([""], []),
    }

    async def graded() -> list[Grade]:
        async with Grader(grading=grading) as grader:
            return [
                await grader.grade(turns, gold, grading, calls, problem.text) for turns, calls in responses.values()
            ]

    lines = [f"  reward     {grading.reward_function}, digest {grading.reward_function_digest}"]
    try:
        grades = asyncio.run(graded())
    except NoRewardError as error:
        raise RewardFunctionError(f"{error}, for one of three responses to the problem {problem.id}") from error
    for what, grade in zip(responses, grades, strict=True):
        parts = ", ".join(f"{part} {value:g}" for part, value in grade.parts.items())
        lines.append(f"             {what}: {grade.reward:g} ({parts})")
    return "\n".join(lines) + "\n"
