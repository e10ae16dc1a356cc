"""What commands are given on the command line: each function adds arguments to a command's parser.

Imports of ours happen inside, so that `--help` answers at once.
"""

import argparse
from argparse import ArgumentParser
from pathlib import Path

MOST_PORT = 65535
LATEST = Path("runs/latest/bus.json")
TRACKERS = ("tensorboard", "wandb", "trackio", "mlflow")
"""As in `configs.schema`, which takes too long to import for `--help`."""


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


def config(command: ArgumentParser, *, optional: bool = False) -> None:
    config = command.add_argument(
        "config",
        metavar="CONFIG",
        nargs="?" if optional else None,
        help="a YAML file or the name of a shipped configuration",
    )
    config.completer = _complete_config  # type: ignore[attr-defined]
    overrides(command)


def _complete_config(prefix: str, **_: object) -> list[str]:
    """Returns what may be meant by the beginning of a CONFIG; the shell's completion asks."""
    from configs.loading import SHIPPED

    return _documents(prefix, SHIPPED)


def overrides(command: ArgumentParser, what: str = "override a field; may be repeated") -> None:
    command.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help=what)


def _complete_matrix(prefix: str, **_: object) -> list[str]:
    """Returns what may be meant by the beginning of a matrix."""
    from configs.matrix import SHIPPED_MATRICES

    return _documents(prefix, SHIPPED_MATRICES)


def _documents(prefix: str, shipped: Path) -> list[str]:
    from argcomplete.completers import FilesCompleter

    from configs.loading import shipped_names

    return [*shipped_names(shipped), *FilesCompleter(("yaml",))(prefix)]


def bus_file(command: ArgumentParser) -> None:
    command.add_argument(
        "--bus",
        type=Path,
        default=LATEST,
        metavar="FILE",
        help=f"bus.json of the run to join, or its file for this role ({LATEST})",
    )


def id(command: ArgumentParser) -> None:
    command.add_argument("--id", type=_name, help="name of this process in the run (made up if absent)")


def stay(command: ArgumentParser) -> None:
    command.add_argument(
        "--stay", action="store_true", help="wait for a resume when the run is done, instead of leaving"
    )


def _name(text: str) -> str:
    from configs.names import RULE, is_name

    if not is_name(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no name of a process: {RULE}")
    return text


def ranks(command: ArgumentParser) -> None:
    command.add_argument(
        "--ranks", type=_positive, metavar="N", help="start N ranks on this machine (one a GPU), as torchrun would"
    )


def loudness(command: ArgumentParser) -> None:
    loudness = command.add_mutually_exclusive_group()
    loudness.add_argument("-q", "--quiet", action="store_true", help="print errors and results alone")
    loudness.add_argument("-v", "--verbose", action="store_true", help="print what roles and libraries log as well")


def up(command: ArgumentParser) -> None:
    config(command, optional=True)
    loudness(command)
    command.add_argument(
        "--resume",
        type=Path,
        metavar="RUN",
        help="go on with the run in this folder; its own configuration needs no CONFIG",
    )


def bus(command: ArgumentParser) -> None:
    command.add_argument("--folder", type=Path, help="folder of the run (runs/<id>)")
    command.add_argument(
        "--init",
        type=Path,
        metavar="DIR",
        help="write the files of the servers in bus.url and each role's credentials to a new run's folder, exit",
    )


def sandbox(command: ArgumentParser) -> None:
    command.add_argument("--check", action="store_true", help="test the isolation, say what is in force, exit")
    command.add_argument(
        "--run", type=Path, metavar="FILE", help="run one program in a jail, print how it ended as JSON, exit"
    )


def status(command: ArgumentParser) -> None:
    command.add_argument("--watch", action="store_true", help="again every two seconds, until Ctrl-C")


def eval(command: ArgumentParser) -> None:
    loudness(command)
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


def metrics(command: ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="one JSON object a line")
    command.add_argument("--role", help="only this role's")


def weights(command: ArgumentParser) -> None:
    run_folder(command)
    command.add_argument(
        "--export",
        nargs=2,
        metavar=("VERSION", "DIR"),
        help="write one version, or `newest`, as a Hugging Face checkpoint",
    )


def replay(command: ArgumentParser) -> None:
    command.add_argument("run", type=Path, metavar="RUN", help="folder of the run")
    overrides(command)
    loudness(command)
    command.add_argument("--out", type=Path, metavar="FOLDER", help="takes model and metrics (RUN/replays/...)")


def run_folder(command: ArgumentParser) -> None:
    command.add_argument(
        "run", type=Path, nargs="?", default=LATEST.parent, metavar="RUN", help="folder of the run (runs/latest)"
    )


def transcripts(command: ArgumentParser) -> None:
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


def trace(command: ArgumentParser) -> None:
    command.add_argument("--ticket", type=_positive, required=True, metavar="K", help="number of the ticket")


def page(command: ArgumentParser) -> None:
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


def track(command: ArgumentParser) -> None:
    command.add_argument(
        "run",
        type=Path,
        nargs="?",
        default=LATEST.parent,
        metavar="RUN",
        help="folder of the run (runs/latest); on a host that has none, its bus.json or credentials/observer.json",
    )
    command.add_argument("--to", required=True, choices=TRACKERS, help="the tracker")


def scaling(command: ArgumentParser) -> None:
    command.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="folder of a run; seeds of a setting are pooled"
    )
    command.add_argument(
        "--out", type=Path, metavar="FOLDER", help="folder of the report (scaling/, in or beside the runs)"
    )


def matrix(command: ArgumentParser) -> None:
    matrix = command.add_argument("matrix", metavar="FILE", help="a YAML file or the name of a shipped matrix")
    matrix.completer = _complete_matrix  # type: ignore[attr-defined]
    loudness(command)
    overrides(command, "override a field of every run")
    command.add_argument(
        "--list", action="store_true", help="say which runs there are and how far they got, run nothing"
    )


def check(command: ArgumentParser) -> None:
    command.add_argument(
        "--check", action="store_true", help="print what it asks of model and machine; 2 if they lack it"
    )
    command.add_argument(
        "--ranks", type=_positive, metavar="N", help="ranks of the learner to plan with (launch.learner_ranks)"
    )
    command.add_argument(
        "--gpu-memory", type=float, metavar="GIB", help="plan for GPUs of this memory instead of this machine"
    )
