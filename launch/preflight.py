"""Checks what a run needs and can be checked without its model, before the first process starts."""

import asyncio
from pathlib import Path

from configs.schema import RunConfig
from evaluation.plan import make_plan, refuse_known
from grading.grader import Grader
from runtime.models import require_folder
from tasks.problems import ProblemOrder, load_problems
from tasks.prompts import KEPT, load_template
from tracking.tracker import require_installed


def require_inputs(config: RunConfig, folder: Path) -> None:
    """Checks a model's folder, trackers, the prompt template, the reward function, and the problems of training and
    evaluation.

    A run that goes on has its template in `folder`. Raises UserError, such as PromptError, RewardFunctionError or
    ProblemError.

    Reads the problems once more than the roles do: seconds for a hundred thousand of them.
    """
    require_folder(config.model.path, "model.path")
    for tracker in config.launch.trackers:
        require_installed(tracker)
    kept = folder / KEPT
    template = load_template(str(kept) if kept.exists() else config.tasks.prompt.template)
    ProblemOrder(load_problems(config.tasks.problems, config.seed), config.seed)
    if config.tasks.grading.reward_function is not None:
        asyncio.run(_load_reward_function(config))
    if config.launch.evaluator:
        refuse_known(config, make_plan(config, config.evaluation, template))


async def _load_reward_function(config: RunConfig) -> None:
    """Has a grading process load it, as actors do: its code runs in no process of ours."""
    async with Grader(1, grading=config.tasks.grading):
        pass
