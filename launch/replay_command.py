"""`zerotir replay RUN`: trains again from the archive of a run, with its own configuration or with another algorithm."""

import argparse
import asyncio
import logging
import secrets
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from bus.messages import Metrics
from configs.agreement import require_effect
from configs.loading import dump_config, load_config
from configs.schema import RunConfig
from launch.rank_launcher import end_with_launcher, rank, run_rank, start_ranks
from launch.screen import say
from runtime.logs import set_up_logs
from runtime.words import time_left

if TYPE_CHECKING:
    from learner.training.trainer import Trainer


def start(arguments: argparse.Namespace) -> int:
    """Runs the command; returns the exit status, 2 for what the user has to fix."""
    run: Path = arguments.run.resolve()
    recorded = load_config(str(run / "config.yaml"))
    config = load_config(str(run / "config.yaml"), arguments.set)
    require_effect(recorded, config, "replay")
    if arguments.ranks:
        return start_ranks(arguments.ranks)
    end_with_launcher()
    from learner.steps import UnstableError, UntrainedError

    try:
        same, config = config == recorded, as_it_computed(config, run)
        if rank() > 0:
            asyncio.run(run_rank(config, asyncio.Event()))
            return 0
        out = arguments.out or run / "replays" / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
        return _replay(config, run, out.resolve(), same=same, verbose=arguments.verbose)
    except (UnstableError, UntrainedError) as error:
        sys.stderr.write(f"zerotir: {error}\n")
        return 1


def _replay(config: RunConfig, run: Path, out: Path, *, same: bool, verbose: bool) -> int:
    from learner.replay import difference, replay
    from learner.steps import UnstableError, UntrainedError
    from learner.training.trainer import make_trainer
    from runtime.models import model_folder

    terminal = logging.INFO if verbose else None
    set_up_logs("learner", "replay", run.name, out.parent / f"{out.name}.log", terminal=terminal)
    say(f"replay of {run.name}: metrics and model in {out}")

    begun = time.monotonic()

    def left_after(step: int) -> str:
        left = config.learner.steps - step
        return f"  {time_left((time.monotonic() - begun) / step * left)}" if step and left else ""

    def report(metrics: Metrics) -> None:
        value = metrics.values.get
        say(
            f"step {metrics.step:>3}/{config.learner.steps}  accuracy {value('accuracy', 0):4.0%}  "
            f"loss {value('loss', 0):.6f}  KL {value('behaviour_kl', 0):.6f}  {value('train_seconds', 0):.1f} s"
            f"{left_after(metrics.step or 0)}"
        )

    trainer = make_trainer(config, model_folder(config.model.path))
    try:
        steps = replay(config, trainer, run, out, report)
    except (UnstableError, UntrainedError):
        # The other ranks wait for a command.
        trainer.close()
        raise
    (out / "config.yaml").write_text(dump_config(config))
    if steps < config.learner.steps:
        say(f"the archive ends after step {steps}: the run had not collected more", matters=True)
    elif not (run / "model").is_dir():
        say("the run has exported no model: nothing to compare the weights with", matters=True)
    else:
        found = difference(run / "model", out / "model")
        if found.different == 0:
            say(f"weights: the same {found.weights} as the run's, bit for bit", matters=True)
        else:
            why = "" if same else " (the configuration differs)"
            say(
                f"weights: {found.different} of {found.weights} differ, by at most {found.largest:.2g}{why}",
                matters=True,
            )
    if same:
        say(f"optimiser state: {_compare_state(trainer, config, run, steps)}", matters=True)
    trainer.close()
    return 0


def _compare_state(trainer: "Trainer", config: RunConfig, run: Path, steps: int) -> str:
    """Loads the run's newest checkpoint into `trainer`, which has done `steps` steps; returns what that changed, in words.

    Published weights are rounded: two bfloat16 models may be equal while what training goes on from is not.
    """
    from learner.checkpoints import Checkpoints

    newest = Checkpoints(run / "checkpoints", config.learner.checkpoint).newest_state()
    if newest is None or newest[1]["step"] != steps:
        return f"not compared, the run has no checkpoint of step {steps}"
    folder, state = newest
    if state["ranks"] != trainer.ranks:
        return f"not compared, the run had {state['ranks']} ranks and this replay {trainer.ranks}"
    same = trainer.load_and_compare(folder)
    if not same:
        return "not compared, no optimiser step was taken"
    if differing := [name for name, equal in same.items() if not equal]:
        return f"other than in {folder.name}; differing: {', '.join(differing)}"
    return f"the same as in {folder.name}, bit for bit ({', '.join(same)})"


def as_it_computed(config: RunConfig, run: Path) -> RunConfig:
    """Takes the threads and the type that the run's learner computed with: sums depend on both. An explicit type stays."""
    import torch

    from learner.checkpoints import Checkpoints, in_checkpoint_dtype

    newest = Checkpoints(run / "checkpoints", config.learner.checkpoint).newest_state()
    if newest is not None:
        torch.set_num_threads(newest[1]["threads"])
    return in_checkpoint_dtype(config, run)
