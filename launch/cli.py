"""The command line: one table of commands, each with its arguments and the function that does it.

Heavy imports happen inside the command that needs them, so that `--help` answers at once.
"""

import errno
import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version

from launch import options
from runtime.child import end_process, isolate_interpreter


@dataclass(frozen=True)
class Command:
    """One command."""

    name: str
    help: str
    does: str
    """`module:function`, imported when the command is called: it takes the arguments and returns the exit status."""
    arguments: tuple[Callable[[ArgumentParser], object], ...]
    """What the command is given; each adds arguments to its parser."""


COMMANDS = (
    Command("up", "run every role on this machine, with an embedded NATS server", "launch.up:start", (options.up,)),
    Command(
        "bus",
        "start a run: its NATS server, streams and bus.json",
        "launch.roles:start_bus",
        (options.config, options.bus),
    ),
    Command(
        "sandbox",
        "execute model-written code in nsjail",
        "launch.roles:start_sandbox",
        (options.config, options.bus_file, options.id, options.stay, options.sandbox),
    ),
    Command(
        "actor",
        "generate trajectories with vLLM",
        "launch.roles:start_actor",
        (options.config, options.bus_file, options.id, options.stay),
    ),
    Command(
        "learner",
        "train the policy; goes on from the newest checkpoint of the run",
        "launch.roles:start_learner",
        (options.config, options.bus_file, options.id, options.ranks),
    ),
    Command(
        "status",
        "who is in the run, and the balance of tickets",
        "launch.view_commands:show_status",
        (options.bus_file, options.status),
    ),
    Command(
        "eval",
        "evaluate a checkpoint, or the weights of a live run",
        "launch.evaluate:start",
        (options.config, options.bus_file, options.eval, options.id),
    ),
    Command(
        "metrics", "follow the metrics log", "launch.view_commands:show_metrics", (options.bus_file, options.metrics)
    ),
    Command(
        "weights",
        "the versions on a run's weight log, and how far its followers are behind",
        "launch.weights_command:start",
        (options.weights,),
    ),
    Command(
        "transcripts",
        "read what a run was trained on, and what it left out",
        "launch.transcripts:start",
        (options.run_folder, options.transcripts),
    ),
    Command(
        "trace",
        "the life of one ticket, from its issue to its step",
        "launch.trace:start",
        (options.run_folder, options.trace),
    ),
    Command(
        "track",
        "give a tracker all that a run measures, live or afterwards",
        "launch.track:start",
        (options.track,),
    ),
    Command(
        "page",
        "runs in the browser, live or afterwards, and their metrics for Prometheus",
        "launch.page_command:start",
        (options.page,),
    ),
    Command(
        "replay",
        "train again from a run's archive, without actors or bus",
        "launch.replay_command:start",
        (options.replay, options.ranks),
    ),
    Command(
        "scaling",
        "correlations, fits, forecasts and plots from the metrics of runs",
        "launch.experiments:report_scaling",
        (options.scaling,),
    ),
    Command(
        "matrix",
        "run a matrix of experiments, one after another, and report them as one",
        "launch.experiments:run_matrix",
        (options.matrix,),
    ),
    Command(
        "config",
        "print the resolved configuration, validated",
        "launch.config_command:start",
        (options.config, options.check),
    ),
)


def parser() -> ArgumentParser:
    """Returns the parser of the whole command line."""
    parser = ArgumentParser(
        prog="zerotir", description="Asynchronous reinforcement learning of tool-using language models."
    )
    parser.add_argument("--version", action="version", version=f"zerotir {version('zerotir')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        own = commands.add_parser(command.name, help=command.help, description=command.help)
        own.set_defaults(does=command.does)
        for add in command.arguments:
            add(own)
    return parser


def main() -> None:
    """Runs the console script `zerotir`, and ends the process."""
    isolate_interpreter()
    end_process(command())


def command() -> int:
    """Does what this process's command line asks for; returns 2 for what the user has to fix, 1 for a failure."""
    # A process may be started without them.
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    command_line = parser()
    if "_ARGCOMPLETE" in os.environ:
        # The shell asks what may come next: it is told, and this process ends.
        import argcomplete

        argcomplete.autocomplete(command_line)
    arguments = command_line.parse_args()
    try:
        code = _run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever reads, `head` for one, has seen enough. The interpreter must not try to write the rest at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except ModuleNotFoundError as error:
        from launch.extras import missing_extra

        if (text := missing_extra(error)) is None:
            raise
        sys.stderr.write(f"zerotir: {text}\n")
        code = 2
    except OSError as error:
        # Of a disk: others say which file they are about.
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or error.filename is not None:
            raise
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (what is left is not tried again at the process's end)
        sys.stderr.write(f"zerotir: the output cannot be written: {error.strerror}\n")
        code = 1
    except KeyboardInterrupt:
        code = 130
    return code


def _run(arguments: Namespace) -> int:
    """Does what the command line asks for; returns the exit status. A CONFIG is loaded first, with its overrides."""
    from configs.errors import UserError
    from configs.loading import load_config

    if getattr(arguments, "quiet", False):
        from launch.screen import be_quiet

        be_quiet()
    try:
        if getattr(arguments, "config", None) is not None:
            arguments.config = load_config(arguments.config, arguments.set)
        module, function = arguments.does.split(":")
        return getattr(import_module(module), function)(arguments)
    except UserError as error:
        sys.stderr.write(f"zerotir: {error}\n")
        return 2


if __name__ == "__main__":
    main()
