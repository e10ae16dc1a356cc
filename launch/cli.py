"""The command line: one table of commands, each with its arguments and the function that does it.

Heavy imports happen inside the command that needs them, so that `--help` answers at once.
"""

import argparse
import errno
import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

from runtime.child import end_process, isolate_interpreter

MOST_PORT = 65535
LATEST = Path("runs/latest/bus.json")
TRACKERS = ("tensorboard", "wandb", "trackio", "mlflow")
"""As in `configs.schema`, which takes too long to import for `--help`."""


@dataclass(frozen=True)
class Command:
    """One command."""

    name: str
    help: str
    does: str
    """`module:function`, imported when the command is called: it takes the arguments and returns the exit status."""
    arguments: tuple[Callable[[ArgumentParser], object], ...]
    """What the command is given; each adds arguments to its parser."""


def _config(command: ArgumentParser, *, optional: bool = False) -> None:
    config = command.add_argument(
        "config",
        metavar="CONFIG",
        nargs="?" if optional else None,
        help="a YAML file or the name of a shipped configuration",
    )
    config.completer = _complete_config  # type: ignore[attr-defined]
    _overrides(command)


def _complete_config(prefix: str, **_: object) -> list[str]:
    """Returns what may be meant by the beginning of a CONFIG; the shell's completion asks."""
    from configs.loading import SHIPPED

    return _documents(prefix, SHIPPED)


def _overrides(command: ArgumentParser, what: str = "override a field; may be repeated") -> None:
    command.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help=what)


def _complete_matrix(prefix: str, **_: object) -> list[str]:
    """Returns what may be meant by the beginning of a matrix."""
    from configs.matrix import SHIPPED_MATRICES

    return _documents(prefix, SHIPPED_MATRICES)


def _documents(prefix: str, shipped: Path) -> list[str]:
    from argcomplete.completers import FilesCompleter

    from configs.loading import shipped_names

    return [*shipped_names(shipped), *FilesCompleter(("yaml",))(prefix)]


def _bus_file(command: ArgumentParser) -> None:
    command.add_argument(
        "--bus",
        type=Path,
        default=LATEST,
        metavar="FILE",
        help=f"bus.json of the run to join, or its file for this role ({LATEST})",
    )


def _id(command: ArgumentParser) -> None:
    command.add_argument("--id", type=_name, help="name of this process in the run (made up if absent)")


def _stay(command: ArgumentParser) -> None:
    command.add_argument(
        "--stay", action="store_true", help="wait for a resume when the run is done, instead of leaving"
    )


def _name(text: str) -> str:
    from configs.names import RULE, is_name

    if not is_name(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no name of a process: {RULE}")
    return text


def _ranks(command: ArgumentParser) -> None:
    command.add_argument(
        "--ranks", type=_positive, metavar="N", help="start N ranks on this machine (one a GPU), as torchrun would"
    )


def _loudness(command: ArgumentParser) -> None:
    loudness = command.add_mutually_exclusive_group()
    loudness.add_argument("-q", "--quiet", action="store_true", help="print errors and results alone")
    loudness.add_argument("-v", "--verbose", action="store_true", help="print what roles and libraries log as well")


def _up(command: ArgumentParser) -> None:
    _config(command, optional=True)
    _loudness(command)
    command.add_argument(
        "--resume",
        type=Path,
        metavar="RUN",
        help="go on with the run in this folder; its own configuration needs no CONFIG",
    )


def _bus(command: ArgumentParser) -> None:
    command.add_argument("--folder", type=Path, help="folder of the run (runs/<id>)")
    command.add_argument(
        "--init",
        type=Path,
        metavar="DIR",
        help="write the files of the servers in bus.url and each role's credentials to a new run's folder, exit",
    )


def _sandbox(command: ArgumentParser) -> None:
    command.add_argument("--check", action="store_true", help="test the isolation, say what is in force, exit")
    command.add_argument(
        "--run", type=Path, metavar="FILE", help="run one program in a jail, print how it ended as JSON, exit"
    )


def _status(command: ArgumentParser) -> None:
    command.add_argument("--watch", action="store_true", help="again every two seconds, until Ctrl-C")


def _eval(command: ArgumentParser) -> None:
    _loudness(command)
    command.add_argument(
        "--checkpoint", metavar="DIR", help="a checkpoint's folder or a model's name; else the run's newest weights"
    )
    command.add_argument(
        "--data",
        nargs="+",
        default=[],
        metavar="NAME_OR_FILE",
        help="data sets: of the configuration, files, or of Hugging Face (NAME, NAME:SPLIT, NAME:SUBSET:SPLIT)",
    )
    command.add_argument(
        "--max-tool-calls",
        type=_limits,
        default=(),
        metavar="N,N,...",
        help="limits of tool calls, one after another: 0,1,2,4,8",
    )
    command.add_argument("--samples", type=_positive, metavar="K", help="responses to each problem")
    command.add_argument("--limit", type=_positive, metavar="N", help="the first N problems of each data set")
    command.add_argument("--out", type=Path, metavar="DIR", help="folder of the results; the same one goes on")
    command.add_argument("--follow", action="store_true", help="stay in the run, evaluate every so many versions")


def _metrics(command: ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="one JSON object a line")
    command.add_argument("--role", help="only this role's")


def _weights(command: ArgumentParser) -> None:
    _run_folder(command)
    command.add_argument(
        "--export",
        nargs=2,
        metavar=("VERSION", "DIR"),
        help="write one version, or `newest`, as a Hugging Face checkpoint",
    )


def _replay(command: ArgumentParser) -> None:
    command.add_argument("run", type=Path, metavar="RUN", help="folder of the run")
    _overrides(command)
    _loudness(command)
    command.add_argument("--out", type=Path, metavar="FOLDER", help="takes model and metrics (RUN/replays/...)")


def _run_folder(command: ArgumentParser) -> None:
    command.add_argument(
        "run", type=Path, nargs="?", default=LATEST.parent, metavar="RUN", help="folder of the run (runs/latest)"
    )


def _transcripts(command: ArgumentParser) -> None:
    command.add_argument("--step", type=_positive, metavar="N", help="only what this step used")
    command.add_argument("--ticket", type=_positive, metavar="K", help="only this ticket's")
    verdict = command.add_mutually_exclusive_group()
    verdict.add_argument("--right", action="store_const", const=True, help="only right answers")
    verdict.add_argument("--wrong", dest="right", action="store_const", const=False, help="only wrong ones, or none")
    command.add_argument("--code", action="store_true", help="only those that had code executed")
    command.add_argument(
        "--filtered", metavar="REASON", help="only what was left out for this reason, such as 'no signal'"
    )
    command.add_argument("--json", action="store_true", help="one JSON object a line")


def _trace(command: ArgumentParser) -> None:
    command.add_argument("--ticket", type=_positive, required=True, metavar="K", help="number of the ticket")


def _page(command: ArgumentParser) -> None:
    command.add_argument(
        "runs",
        type=Path,
        nargs="*",
        default=[LATEST.parent],
        metavar="RUN",
        help="folders of runs (runs/latest); on a host that has none, bus.json or credentials/observer.json",
    )
    command.add_argument("--host", default="127.0.0.1", help="address to serve it at (127.0.0.1); others need a token")
    command.add_argument("--port", type=_port, help="port to serve it at; 0 takes a free one")


def _track(command: ArgumentParser) -> None:
    command.add_argument(
        "run",
        type=Path,
        nargs="?",
        default=LATEST.parent,
        metavar="RUN",
        help="folder of the run (runs/latest); on a host that has none, its bus.json or credentials/observer.json",
    )
    command.add_argument("--to", required=True, choices=TRACKERS, help="the tracker")


def _scaling(command: ArgumentParser) -> None:
    command.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="folder of a run; seeds of a setting are pooled"
    )
    command.add_argument(
        "--out", type=Path, metavar="FOLDER", help="folder of the report (scaling/, in or beside the runs)"
    )


def _matrix(command: ArgumentParser) -> None:
    matrix = command.add_argument("matrix", metavar="FILE", help="a YAML file or the name of a shipped matrix")
    matrix.completer = _complete_matrix  # type: ignore[attr-defined]
    _loudness(command)
    _overrides(command, "override a field of every run")
    command.add_argument(
        "--list", action="store_true", help="say which runs there are and how far they got, run nothing"
    )


def _check(command: ArgumentParser) -> None:
    command.add_argument(
        "--check", action="store_true", help="print what it asks of model and machine; 2 if they lack it"
    )
    command.add_argument(
        "--ranks", type=_positive, default=1, metavar="N", help="ranks of the learner to plan with (1)"
    )
    command.add_argument(
        "--gpu-memory", type=float, metavar="GIB", help="plan for GPUs of this memory instead of this machine"
    )


COMMANDS = (
    Command("up", "run every role on this machine, with an embedded NATS server", "launch.up:start", (_up,)),
    Command("bus", "start a run: its NATS server, streams and bus.json", "launch.roles:start_bus", (_config, _bus)),
    Command(
        "sandbox",
        "execute model-written code in nsjail",
        "launch.roles:start_sandbox",
        (_config, _bus_file, _id, _stay, _sandbox),
    ),
    Command("actor", "generate trajectories with vLLM", "launch.roles:start_actor", (_config, _bus_file, _id, _stay)),
    Command(
        "learner",
        "train the policy; goes on from the newest checkpoint of the run",
        "launch.roles:start_learner",
        (_config, _bus_file, _id, _ranks),
    ),
    Command(
        "status",
        "who is in the run, and the balance of tickets",
        "launch.view_commands:show_status",
        (_bus_file, _status),
    ),
    Command(
        "eval",
        "evaluate a checkpoint, or the weights of a live run",
        "launch.evaluate:start",
        (_config, _bus_file, _eval, _id),
    ),
    Command("metrics", "follow the metrics log", "launch.view_commands:show_metrics", (_bus_file, _metrics)),
    Command(
        "weights",
        "the versions on a run's weight log, and how far its followers are behind",
        "launch.weights_command:start",
        (_weights,),
    ),
    Command(
        "transcripts",
        "read what a run was trained on, and what it left out",
        "launch.transcripts:start",
        (_run_folder, _transcripts),
    ),
    Command("trace", "the life of one ticket, from its issue to its step", "launch.trace:start", (_run_folder, _trace)),
    Command(
        "track",
        "give a tracker all that a run measures, live or afterwards",
        "launch.track:start",
        (_track,),
    ),
    Command(
        "page",
        "runs in the browser, live or afterwards, and their metrics for Prometheus",
        "launch.page_command:start",
        (_page,),
    ),
    Command(
        "replay",
        "train again from a run's archive, without actors or bus",
        "launch.replay_command:start",
        (_replay, _ranks),
    ),
    Command(
        "scaling",
        "correlations, fits, forecasts and plots from the metrics of runs",
        "launch.experiments:report_scaling",
        (_scaling,),
    ),
    Command(
        "matrix",
        "run a matrix of experiments, one after another, and report them as one",
        "launch.experiments:run_matrix",
        (_matrix,),
    ),
    Command("config", "print the resolved configuration, validated", "launch.config_command:start", (_config, _check)),
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


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > MOST_PORT:
        raise argparse.ArgumentTypeError(f"{text!r} is no port")
    return int(text)


def _limits(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers such as 0,1,2,4,8")
    return tuple(map(int, parts))


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
