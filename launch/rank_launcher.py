"""Several ranks of one command: started on this machine by PyTorch's own launcher, or anywhere by any other.

`torchrun`, `deepspeed` and `zerotir ... --ranks N` all start the same command on every rank and say in the environment which
rank it is. Rank 0 does what the command line says; the others serve it.
"""

import asyncio
import os
import sys

import structlog

from configs.schema import RunConfig
from launch.processes import STOPPED
from runtime.child import die_with_parent

log = structlog.get_logger()


def rank() -> int:
    """Returns this process's rank among those that were launched together; 0 where it was started alone."""
    return int(os.environ.get("RANK", "0"))


def rank_count() -> int:
    """Returns how many were launched together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def start_ranks(count: int) -> int:
    """Starts this very command line on `count` ranks and waits; returns the status of the first that failed, or 0."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    arguments = iter(sys.argv[1:])
    rest = []
    for argument in arguments:
        if argument == "--ranks":
            next(arguments)
        elif not argument.startswith("--ranks="):
            rest.append(argument)
    try:
        run(parse_args(["--standalone", f"--nproc-per-node={count}", "-m", "launch.cli", *rest]))
    except SignalException:
        # It has passed the signal on and waited for the ranks.
        return STOPPED
    except ChildFailedError as error:
        number, failure = error.get_first_failure()
        sys.stderr.write(f"zerotir: rank {number} ended with status {failure.exitcode}\n")
        return abs(failure.exitcode)
    return 0


def end_with_launcher() -> None:
    """Makes a rank end when its launcher is killed: nobody else would stop it."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        die_with_parent()


async def run_rank(config: RunConfig, stop: asyncio.Event) -> None:
    """Loads this rank's part of the model and carries out rank 0's commands, until rank 0 ends."""
    from learner.training.rank_group import serve_rank
    from learner.training.rank_trainer import RankTrainer
    from runtime.models import model_folder

    def work() -> None:
        serve_rank(RankTrainer(config, model_folder(config.model.path)))

    try:
        await asyncio.to_thread(work)
    except RuntimeError as error:
        if not stop.is_set():
            raise
        log.info("rank 0 has stopped", error=str(error).splitlines()[0])
