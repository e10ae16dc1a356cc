"""`zerotir config`: prints the resolved configuration, or what it asks of model and machine."""

import sys
from argparse import Namespace

from configs.loading import dump_config


def start(arguments: Namespace) -> int:
    """Runs the command; returns the exit status."""
    if arguments.check:
        from launch.task_check import prompt_sample
        from learner.training.plan import show_plan

        status = show_plan(arguments.config, arguments.ranks, arguments.gpu_memory)
        sys.stdout.write(prompt_sample(arguments.config) + "\n")
        return status
    sys.stdout.write(dump_config(arguments.config))
    return 0
