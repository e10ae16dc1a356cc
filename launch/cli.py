"""The command line. Heavy imports happen inside the role that needs them, so that `--help` answers at once."""

import argparse
import sys
from pathlib import Path

LATEST = Path("runs/latest/bus.json")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="zerotir", description="Asynchronous reinforcement learning of tool-using language models."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str, *, config: bool = True, joins: bool = False) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        if config:
            command.add_argument("config", metavar="CONFIG", help="a YAML file or the name of a shipped configuration")
            command.add_argument(
                "--set", action="append", default=[], metavar="FIELD=VALUE", help="override a field; may be repeated"
            )
        if joins:
            command.add_argument(
                "--run", type=Path, default=LATEST, metavar="FILE", help=f"bus.json of the run to join ({LATEST})"
            )
        return command

    up = add("up", "run every role on this machine, with an embedded NATS server")
    up.add_argument("--resume", type=Path, metavar="FOLDER", help="go on with the run in this folder")
    bus = add("bus", "start a run: its NATS server, streams and bus.json")
    bus.add_argument("--folder", type=Path, help="folder of the run (runs/<id>)")
    for role, text in (
        ("sandbox", "execute model-written code in nsjail"),
        ("actor", "generate trajectories with vLLM"),
        ("learner", "train the policy; goes on from the newest checkpoint of the run"),
    ):
        command = add(role, text, joins=True)
        command.add_argument("--id", help="name of this process in the run (made up if absent)")
        if role == "sandbox":
            command.add_argument("--check", action="store_true", help="test the isolation, say what is in force, exit")
    add("status", "who is in the run, and the balance of tickets", config=False, joins=True)
    metrics = add("metrics", "follow the metrics log", config=False, joins=True)
    metrics.add_argument("--json", action="store_true", help="one JSON object a line")
    metrics.add_argument("--role", help="only this role's")
    add("config", "print the resolved configuration, validated")
    return parser


def main() -> None:
    """Entry point of the console script `zerotir`; exits with 2 for what the user has to mend, 1 for a failure."""
    arguments = _parser().parse_args()
    from configs.loading import ConfigError, dump_config, load_config

    try:
        config = load_config(arguments.config, arguments.set) if hasattr(arguments, "config") else None
    except ConfigError as error:
        print(f"zerotir: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    if arguments.command == "config":
        assert config is not None
        sys.stdout.write(dump_config(config))
        return
    try:
        if config is None:
            from launch.views import show_metrics, show_status

            if arguments.command == "status":
                code = show_status(arguments.run)
            else:
                code = show_metrics(arguments.run, arguments.role, as_json=arguments.json)
        elif arguments.command == "up":
            from launch.up import up

            code = up(config, arguments.resume)
        else:
            from launch import roles

            code = roles.start(arguments, config)
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


if __name__ == "__main__":
    main()
