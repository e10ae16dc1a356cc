"""`zerotir eval`: a checkpoint, with engine and jails of this process alone, or the weights of a run, as a role of it."""

import argparse
import asyncio
import logging
import os
import re
import secrets
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from bus.connection import Bus, open_bus
from bus.presence import Announcer
from bus.run_record import recorded_template
from configs.errors import UserError
from configs.schema import RunConfig
from grading.reward_source import with_digest
from launch.joining import guarded, join, model_of_run, new_id, start_engine
from launch.processes import STOPPED
from launch.screen import is_live, live_line, say
from learner.training.plan import require_model
from runtime.files import make_folder
from runtime.logs import set_up_logs
from runtime.models import model_folder

if TYPE_CHECKING:
    from evaluation.plan import Plan
    from evaluation.scoring import Scores

log = structlog.get_logger()

LIVE_EVERY_S = 0.5
"""How often a line that changes in its place is set anew."""


def start(arguments: argparse.Namespace) -> int:
    """Runs the command; returns the exit status: 0 when every sample is there, 1 when some are missing, 130 when stopped."""
    from evaluation.plan import choose

    config = with_digest(arguments.config)
    if arguments.checkpoint and arguments.follow:
        raise UserError("--follow is for a live run: a checkpoint has no next version")
    chosen = choose(config, arguments.data, arguments.max_tool_calls, arguments.samples, arguments.limit)
    config = config.model_copy(update={"evaluation": chosen})
    if arguments.checkpoint:
        out = arguments.out or _folder_for(config, arguments.checkpoint)
        return guarded(
            lambda stop: _evaluate_checkpoint(config, arguments.checkpoint, out, stop, verbose=arguments.verbose)
        )

    # One that follows leaves with the run; to evaluate a run's newest weights once it may be done.
    ended = asyncio.Event() if arguments.follow else None

    async def play(config: RunConfig, bus: Bus, announcer: Announcer, folder: Path, stop: asyncio.Event) -> None:
        out = arguments.out or folder / "evaluation"
        await _evaluate_run(config, bus, announcer, out, stop, ended)

    id = arguments.id or new_id("evaluator")
    # One that follows is a role like others.
    terminal = logging.INFO if arguments.verbose or (arguments.follow and not arguments.quiet) else logging.WARNING
    return guarded(lambda stop: join("evaluator", play, id, config, arguments.bus, stop, ended, terminal))


def _folder_for(config: RunConfig, checkpoint: str) -> Path:
    """Returns the folder of a checkpoint's evaluation, by the last two parts of its path: `model` would name every run's."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", "-".join(Path(checkpoint).parts[-2:])).strip("-.")
    return Path(config.launch.runs_dir) / f"evaluation-{config.name}-{name}"


async def _evaluate_checkpoint(
    config: RunConfig, checkpoint: str, out: Path, stop: asyncio.Event, *, verbose: bool
) -> None:
    from bus.messages import WeightVersion
    from evaluation.checkpoint import CheckpointImage
    from evaluation.evaluator import PROGRESS_EVERY_S
    from evaluation.plan import make_plan, refuse_known
    from evaluation.runner import LocalRunner
    from evaluation.scoring import score
    from grading.grader import Grader
    from sandbox.check import check
    from sandbox.jail import Jail
    from sandbox.pool import Pool
    from tasks.prompts import load_template

    # The user's mistakes come first: they leave no folder behind.
    terminal = logging.INFO if verbose else logging.WARNING
    set_up_logs("evaluator", "evaluator", out.name, terminal=terminal)
    model = await asyncio.to_thread(model_folder, checkpoint, "--checkpoint")
    await asyncio.to_thread(require_model, config, model)
    template = load_template(config.tasks.prompt.template)
    plan = await asyncio.to_thread(make_plan, config, config.evaluation, template)
    # A checkpoint may be evaluated where its training problems are not.
    await asyncio.to_thread(partial(refuse_known, config, plan, required=False))
    make_folder(out, "--out")
    set_up_logs("evaluator", "evaluator", out.name, out / "eval.jsonl", terminal=terminal)
    jail = Jail(config.sandbox)
    await check(jail)
    if jail.weaker:
        log.warning(jail.weaker)
    say(f"{_description(plan)} with {checkpoint}; results in {out}")
    # Nothing else needs them, unlike in a run.
    os.environ.setdefault("ZEROTIR_ENGINE_CORES", ",".join(map(str, sorted(os.sched_getaffinity(0)))))
    async with Grader(grading=config.tasks.grading) as grader:
        with await asyncio.to_thread(CheckpointImage.read, model) as image:
            seed = secrets.randbits(31)
            engine = await start_engine(config, model, seed, stop)
            try:
                await engine.load(WeightVersion(epoch=0, n=0), image.tensors, image.path)
                async with Pool(jail) as pool:
                    live = is_live()
                    with live_line() as show:
                        scores = await score(
                            plan,
                            f"{Path(checkpoint).name} {image.digest}",
                            out,
                            engine,
                            LocalRunner(pool, config.sandbox),
                            grader,
                            config.actor.max_rollouts,
                            stop,
                            show if live else say,
                            LIVE_EVERY_S if live else PROGRESS_EVERY_S,
                        )
            finally:
                await engine.stop()
    _conclude(scores, out, "the same command goes on")


async def _evaluate_run(
    config: RunConfig, bus: Bus, announcer: Announcer, out: Path, stop: asyncio.Event, ended: asyncio.Event | None
) -> None:
    """Evaluates versions as they come until `ended` and the last one are; without `ended`, the newest one."""
    from evaluation.following import Following
    from evaluation.plan import make_plan, refuse_known
    from grading.grader import Grader

    model = await model_of_run(config, bus, announcer, stop)
    if model is None:
        return
    await announcer.say("loading problems and the engine")
    plan = await asyncio.to_thread(make_plan, config, config.evaluation, await recorded_template(bus))
    await asyncio.to_thread(refuse_known, config, plan)
    await asyncio.to_thread(require_model, config, model)
    async with Grader(grading=config.tasks.grading) as grader:
        seed = secrets.randbits(31)
        engine = await start_engine(config, model, seed, stop, announcer)
        try:
            async with open_bus(bus.address, bus.config, f"{announcer.id}-weights") as weights_bus:
                following = Following(config, plan, bus, weights_bus, engine, grader, announcer, out, say)
                scores = await following.run(stop, ended)
        finally:
            await engine.stop()
    if ended is None and scores is not None:
        version = engine.version
        remedy = f"the same command goes on while {version} is the run's newest version"
        _conclude(scores, out / str(version), remedy)


def _conclude(scores: "Scores", out: Path, remedy: str) -> None:
    """Says what came of it and ends the process accordingly."""
    from evaluation.results import table

    if scores.rows:
        sys.stdout.write(aligned(table(scores.rows)) + "\n")
    say(f"read the transcripts in {out / 'index.html'}; numbers: results.md and results.json beside it", matters=True)
    for reason, count in scores.missing.most_common():
        say(f"{count} samples are missing: {reason}", matters=True)
    if not scores.finished:
        say(f"stopped; what is finished is kept, {remedy}", matters=True)
        sys.exit(STOPPED)
    if not scores.rows and not scores.missing:
        say("nothing was evaluated: no problem could be asked, results.json says why (left_out)", matters=True)
        sys.exit(1)
    if scores.missing:
        say(f"{scores.missing.total()} samples are missing; {remedy}", matters=True)
        sys.exit(1)


def aligned(rows: list[list[str]]) -> str:
    """Returns a table for a terminal."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _description(plan: "Plan") -> str:
    sets = ", ".join(f"{len(data.problems)} of {data.name}" for data in plan.data)
    limits = ", ".join(map(str, plan.max_tool_calls))
    return f"evaluating {len(plan.jobs())} samples: {sets}; {plan.samples} each with {limits} calls allowed"
