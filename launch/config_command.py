"""`zerotir config`: prints the resolved configuration, or what it asks of model and machine."""

import sys
from argparse import Namespace

from configs.loading import dump_config
from grading.reward_source import with_digest


def start(arguments: Namespace) -> int:
    """Runs the command; returns the exit status."""
    config = with_digest(arguments.config)
    if arguments.check:
        from launch.task_check import prompt_sample, reward_sample
        from learner.training.plan import show_plan

        status = show_plan(config, arguments.ranks or config.launch.learner_ranks, arguments.gpu_memory)
        sys.stdout.write(prompt_sample(config) + "\n")
        sys.stdout.write(reward_sample(config))
        return status
    sys.stdout.write(dump_config(config))
    return 0
