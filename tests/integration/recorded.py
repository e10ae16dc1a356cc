"""The folder that a run of the tiny model leaves, written by hand: three steps of made-up results."""

import argparse
from pathlib import Path

import numpy as np

from bus.messages import Failure, Trajectory, VersionSpan, WeightVersion
from configs.loading import dump_config, load_config
from launch.replay_command import start
from learner.tickets.archive import Archive
from tests.factories import random_trajectory

SETTINGS = (
    "learner.steps=3",
    "learner.batch_groups=2",
    "learner.group_size=2",
    "learner.max_staleness=1",
    "learner.optimizer.lr=1e-3",
)
BATCHES = ((0, 2), (1, 3), (4, 5))
"""Groups of the batches of the three steps. Group 1 comes late: as step 0 may leave it, its batch is 0 and 2."""
ORDER = (0, 2, 1, 3, 4, 5)


def _result(ticket: int, group: int, rng: np.random.Generator, temperature: float) -> Trajectory:
    item = random_trajectory(group, float(ticket % 2), rng, temperature)
    version = WeightVersion(epoch=0, n=max(0, group // 2 - 1))
    span = VersionSpan(version=version, start=0, end=item.response_length)
    return item.model_copy(update={"ticket": ticket, "versions": (span,)})


def write_run(run: Path, *settings: str, temperature: float = 0.7, groups: tuple[int, ...] = ORDER) -> None:
    """Writes configuration and archive to the folder `run`; ticket 10, of group 4, ended without a trajectory."""
    archive = Archive(run / "results")
    (run / "config.yaml").write_text(dump_config(load_config("tiny", [*SETTINGS, *settings])))
    rng = np.random.default_rng(0)
    for position, group in enumerate(groups):
        for ticket in (2 * group + 1, 2 * group + 2):
            sequence = archive.last + 3  # Others were ignored.
            if ticket == 10:
                late = Failure(ticket=10, group=4, reason="deadline", attempts=1, actor="a", published_at=0.0)
                archive.append(position // 2, sequence, late)
            else:
                archive.append(position // 2, sequence, _result(ticket, group, rng, temperature))


def replay(run: Path, *overrides: str, out: str = "out") -> Path:
    folder = run / out
    arguments = argparse.Namespace(run=run, set=list(overrides), ranks=None, out=folder, verbose=False)
    assert start(arguments) == 0
    return folder
