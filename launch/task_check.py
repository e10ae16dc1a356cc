"""Checks template, prompts and gold answers of a run before its model is loaded: if none works, no step can train."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import structlog

from configs.schema import RunConfig
from grading.grader import Grader, UngradableError
from runtime.files import write_whole
from runtime.models import PREPARED, model_folder
from tasks.problems import Problem, ProblemError, ProblemOrder, load_problems
from tasks.prompts import load_template, render_prompt

log = structlog.get_logger()

LAST_TOKENS = 8
SHOWN = 400
"""Characters of a prompt that are shown."""
SAMPLE = 64
"""Problems that are looked at: the run's first ones."""


def kept_template(folder: Path, name: str) -> str:
    """Returns the template's text that the run in `folder` began with; keeps that of template `name` for a new run.

    So a file that is edited or moved while the run is stopped changes nothing. Raises PromptError.
    """
    kept = folder / "template.txt"
    if not kept.exists():
        write_whole(kept, load_template(name) + "\n")
    return load_template(str(kept))


async def require_usable_tasks(config: RunConfig, template: str, order: ProblemOrder, model: Path) -> None:
    """Raises PromptError or ProblemError where no problem of a sample could be trained on; warns where some could not.

    Args:
        template: the prompt's text, with its placeholder.
        order: the run's problems.
        model: a folder with the model's tokenizer.
    """
    problems = [order[group] for group in range(min(SAMPLE, config.learner.steps * config.learner.batch_groups))]
    reasons = await asyncio.to_thread(_too_long, config, template, problems, model)
    async with Grader() as grader:
        for problem in problems:
            try:
                await grader.require_gradable(problem.answer, config.tasks.grading)
            except UngradableError as error:
                reasons.setdefault(problem.id, str(error))
    if not reasons:
        return
    unusable = len({problem.id for problem in problems} & reasons.keys())
    [(reason, _)] = Counter(reasons.values()).most_common(1)
    text = f"{unusable} of {len({problem.id for problem in problems})} problems cannot be trained on, for instance: {reason}"
    if unusable == len({problem.id for problem in problems}):
        raise ProblemError(text)
    log.warning(f"{text}; their tickets will fail", problems=sorted(reasons)[:10])


def prompt_sample(config: RunConfig) -> str:
    """Returns the run's first prompt for people, and its last tokens one by one: what the model reads before it writes.

    Raises ProblemError and PromptError where there is none.
    """
    from transformers import AutoTokenizer

    problem = ProblemOrder(load_problems(config.tasks.problems, config.seed), config.seed)[0]
    template = load_template(config.tasks.prompt.template)
    path = config.model.path
    try:
        tokenizer = AutoTokenizer.from_pretrained(model_folder(path) if path in PREPARED else Path(path).expanduser())
    except (OSError, ValueError) as error:
        return f"  prompt     not shown, {path} has no tokenizer: {str(error).splitlines()[0]}"
    tokens = render_prompt(template, problem.text, tokenizer, chat=config.tasks.prompt.chat)
    last = " ".join(repr(tokenizer.decode([token])) for token in tokens[-LAST_TOKENS:])
    text = tokenizer.decode(tokens)
    shown = text if len(text) <= SHOWN else f"{text[: SHOWN // 2]} ... {text[-SHOWN // 2 :]}"
    return f"  prompt     {len(tokens)} tokens: {shown!r}\n             the last ones: {last}"


def _too_long(config: RunConfig, template: str, problems: Sequence[Problem], model: Path) -> dict[str, str]:
    """Returns why the prompts of some problems cannot be asked, by the problems' ids."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    limit = config.rollout.max_prompt_tokens
    found = {}
    for problem in problems:
        length = len(render_prompt(template, problem.text, tokenizer, chat=config.tasks.prompt.chat))
        if length > limit:
            found[problem.id] = f"the prompt of {problem.id} has {length} tokens, rollout.max_prompt_tokens is {limit}"
    return found
