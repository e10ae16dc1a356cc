"""`zerotir config`: prints the resolved configuration, or what it asks of model and machine."""

import sys
from argparse import Namespace

from configs.loading import dump_config


def start(arguments: Namespace) -> int:
    """Runs the command; returns the exit status."""
    if arguments.check:
        from learner.training.plan import show_plan

        return show_plan(arguments.config, arguments.ranks, arguments.gpu_memory)
    sys.stdout.write(dump_config(arguments.config))
    return 0
