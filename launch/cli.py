"""The command line. Heavy imports happen inside the role that needs them, so that `--help` answers at once."""

import argparse
import os
import sys
from importlib.metadata import version
from pathlib import Path

from runtime.child import isolate_interpreter

LATEST = Path("runs/latest/bus.json")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="zerotir", description="Asynchronous reinforcement learning of tool-using language models."
    )
    parser.add_argument("--version", action="version", version=f"zerotir {version('zerotir')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(
        name: str, text: str, *, config: bool = True, optional: bool = False, joins: bool = False
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        if config:
            command.add_argument(
                "config",
                metavar="CONFIG",
                nargs="?" if optional else None,
                help="a YAML file or the name of a shipped configuration",
            )
            command.add_argument(
                "--set", action="append", default=[], metavar="FIELD=VALUE", help="override a field; may be repeated"
            )
        if joins:
            command.add_argument(
                "--bus",
                type=Path,
                default=LATEST,
                metavar="FILE",
                help=f"bus.json of the run to join, or its file for this role ({LATEST})",
            )
        return command

    def ranks(command: argparse.ArgumentParser) -> None:
        command.add_argument(
            "--ranks", type=int, metavar="N", help="start N ranks on this machine (one a GPU), as torchrun would"
        )

    up = add("up", "run every role on this machine, with an embedded NATS server", optional=True)
    up.add_argument(
        "--resume",
        type=Path,
        metavar="RUN",
        help="go on with the run in this folder; its own configuration needs no CONFIG",
    )
    bus = add("bus", "start a run: its NATS server, streams and bus.json")
    bus.add_argument("--folder", type=Path, help="folder of the run (runs/<id>)")
    bus.add_argument(
        "--init",
        type=Path,
        metavar="DIR",
        help="write the files of the servers in bus.url and each role's credentials to a new run's folder, exit",
    )
    for role, text in (
        ("sandbox", "execute model-written code in nsjail"),
        ("actor", "generate trajectories with vLLM"),
        ("learner", "train the policy; goes on from the newest checkpoint of the run"),
    ):
        command = add(role, text, joins=True)
        command.add_argument("--id", help="name of this process in the run (made up if absent)")
        if role == "learner":
            ranks(command)
        if role == "sandbox":
            command.add_argument("--check", action="store_true", help="test the isolation, say what is in force, exit")
            command.add_argument(
                "--run", type=Path, metavar="FILE", help="run one program in a jail, print how it ended as JSON, exit"
            )
    status = add("status", "who is in the run, and the balance of tickets", config=False, joins=True)
    status.add_argument("--watch", action="store_true", help="again every two seconds, until Ctrl-C")
    _add_evaluation(add("eval", "evaluate a checkpoint, or the weights of a live run", joins=True))
    metrics = add("metrics", "follow the metrics log", config=False, joins=True)
    metrics.add_argument("--json", action="store_true", help="one JSON object a line")
    metrics.add_argument("--role", help="only this role's")
    weights = add("weights", "the versions on a run's weight log, and how far its followers are behind", config=False)
    weights.add_argument(
        "run", type=Path, nargs="?", default=LATEST.parent, metavar="RUN", help="folder of the run (runs/latest)"
    )
    weights.add_argument(
        "--export",
        nargs=2,
        metavar=("VERSION", "DIR"),
        help="write one version, or `newest`, as a Hugging Face checkpoint",
    )
    replay = add("replay", "train again from a run's archive, without actors or bus", config=False)
    replay.add_argument("run", type=Path, metavar="RUN", help="folder of the run")
    replay.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="override a field; may be repeated"
    )
    replay.add_argument("--out", type=Path, metavar="FOLDER", help="takes model and metrics (RUN/replays/...)")
    ranks(replay)
    scaling = add("scaling", "correlations, fits, forecasts and plots from the metrics of runs", config=False)
    scaling.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="folder of a run; seeds of a setting are pooled"
    )
    scaling.add_argument(
        "--out", type=Path, metavar="FOLDER", help="folder of the report (scaling/, in or beside the runs)"
    )
    matrix = commands.add_parser(
        "matrix", help="run a matrix of experiments, one after another, and report them as one"
    )
    matrix.add_argument("matrix", metavar="FILE", help="a YAML file or the name of a shipped matrix")
    matrix.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="override a field of every run"
    )
    matrix.add_argument(
        "--list", action="store_true", help="say which runs there are and how far they got, run nothing"
    )
    config = add("config", "print the resolved configuration, validated")
    config.add_argument(
        "--check", action="store_true", help="print what it asks of model and machine; 2 if they lack it"
    )
    config.add_argument("--ranks", type=_positive, default=1, metavar="N", help="ranks of the learner to plan with (1)")
    config.add_argument(
        "--gpu-memory", type=float, metavar="GIB", help="plan for GPUs of this memory instead of this machine"
    )
    return parser


def _add_evaluation(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--checkpoint", metavar="DIR", help="a checkpoint's folder or a model's name; else the run's newest weights"
    )
    command.add_argument(
        "--data", nargs="+", default=[], metavar="NAME_OR_FILE",
        help="data sets: of the configuration, files, or Hugging Face `name:split`",
    )  # fmt: skip
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
    command.add_argument("--id", help="name of this process in the run (made up if absent)")


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


def _limits(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers such as 0,1,2,4,8")
    return tuple(map(int, parts))


def main() -> None:
    """Entry point of the console script `zerotir`; exits with 2 for what the user has to fix, 1 for a failure."""
    isolate_interpreter()
    arguments = _parser().parse_args()
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
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


def _run(arguments: argparse.Namespace) -> int:
    """Does what the command line asks for; returns the exit status."""
    from configs.loading import ConfigError, dump_config, load_config

    try:
        if arguments.command == "up" and arguments.config is None:
            if arguments.resume is None:
                raise ConfigError("up needs a CONFIG, or --resume with the folder of a run")
            arguments.config = str(arguments.resume / "config.yaml")
        config = load_config(arguments.config, arguments.set) if hasattr(arguments, "config") else None
    except ConfigError as error:
        sys.stderr.write(f"zerotir: {error}\n")
        return 2
    if arguments.command == "weights":
        from launch.weights_command import show_weights

        return show_weights(arguments.run, arguments.export)
    if arguments.command == "replay":
        from launch import replay_command

        return replay_command.start(arguments)
    if arguments.command in ("scaling", "matrix"):
        from launch import experiments

        return experiments.start(arguments)
    if config is None:
        from launch.views import show_metrics, show_status

        if arguments.command == "status":
            return show_status(arguments.bus, watch=arguments.watch)
        return show_metrics(arguments.bus, arguments.role, as_json=arguments.json)
    if arguments.command == "config":
        if arguments.check:
            from learner.training.plan import show_plan

            return show_plan(config, arguments.ranks, arguments.gpu_memory)
        sys.stdout.write(dump_config(config))
        return 0
    if arguments.command == "up":
        from launch.up import up

        return up(config, arguments.resume)
    if arguments.command == "eval":
        from launch import evaluate

        return evaluate.start(arguments, config)
    from launch import roles

    return roles.start(arguments, config)


if __name__ == "__main__":
    main()
