"""Shows a run whose servers do not answer, from its folder: what the learner has written there."""

import json
import socket
import sys
import time
from pathlib import Path
from shlex import quote
from typing import Any
from urllib.parse import urlsplit

import structlog

from bus.address import BusAddress, run_folder
from bus.alarms import Alarm
from bus.connection import BusError
from bus.metrics import records_of, run_of, steps_of
from configs.alarms import AlarmsConfig
from configs.errors import UserError
from configs.loading import ConfigError, load_config, read_document
from configs.names import to_name
from configs.schema import RunConfig
from launch.views import summary, values_line
from learner.alarms import Watch
from runtime.words import how_long

log = structlog.get_logger()

ANSWER_S = 2.0
"""Seconds in which a server takes a connection, and greets, if it is up."""
DEFAULT_PORT = 4222
GREETING = b"INFO"
LINE = ("run", "seq", "time", "role", "id", "step")
"""Fields of a line of `metrics.jsonl` besides the values."""


def bus_file_of(run: Path) -> Path:
    """Returns the file by which a view joins a run: that in the run's folder, or the given one on a host without it."""
    return run / "bus.json" if run.is_dir() or not run.suffix else run


def run_id_of(folder: Path) -> str:
    """Returns the id of the run in `folder`; a name made of the folder's where its metrics name none."""
    return run_of(folder / "metrics.jsonl") or to_name(folder.name)


def folder_alone(bus_file: Path) -> Path | None:
    """Returns a run's folder where none of its servers takes a connection; None where a view can ask them.

    Raises AddressError where there is no run, BusError where the folder has nothing that could be shown.
    """
    folder = run_folder(bus_file)
    measured = (folder / "metrics.jsonl").exists()
    if measured and not bus_file.exists():
        return folder
    address = BusAddress.read(bus_file)
    url = address.url
    # With TLS a server waits for the client to begin.
    if any(_answers(server, greets=address.tls.ca is None) for server in url.split(",")):
        return None
    if not measured:
        raise BusError(
            f"nothing answers at {url}, and {folder} holds no metrics: start `zerotir bus` again, or look on the learner's "
            "host"
        )
    return folder


def _answers(url: str, *, greets: bool) -> bool:
    """Returns whether there is a server, by its greeting: another program may have the port."""
    where = urlsplit(url)
    try:
        with socket.create_connection((where.hostname or "", where.port or DEFAULT_PORT), timeout=ANSWER_S) as server:
            return not greets or server.recv(len(GREETING)) == GREETING
    except OSError:
        return False


def status_of(folder: Path) -> str:
    """Returns what is known of the run in `folder`, for people. Raises BalanceError where its tickets do not add up."""
    steps = steps_of(folder)
    config = config_if_there(folder)
    wanted = config.learner.steps if config else None
    done = f"{len(steps)} steps" if wanted is None else f"{len(steps)} of {wanted} steps"
    ago = f", the last {how_long(time.time() - steps[-1]['time'])} ago" if steps else ""
    if steps and wanted is not None and steps[-1]["step"] >= wanted and (folder / "model").is_dir():
        state = f"finished: {done}{ago}"
    else:
        again = f"; go on with: zerotir up --resume {quote(str(folder))}" if (folder / "up.yaml").exists() else ""
        state = f"not finished: {done}{ago}{again}"
    plots = sorted((folder / "plots").glob("*.png"))
    raised = "".join(f"{alarm.line()}\n" for alarm in alarms_of(folder))
    return f"its servers do not answer; what its folder says:\n{state}\n{raised}{summary(folder, plots)}\n"


def alarms_of(folder: Path) -> list[Alarm]:
    """Returns the alarms that were raised when the last metrics of the run in `folder` were recorded."""
    config = config_if_there(folder)
    watch, last = Watch(config.alarms if config else AlarmsConfig(), "learner"), 0.0
    for record in records_of(folder / "metrics.jsonl"):
        watch.see(record)
        last = record["time"]
    return watch.alarms(last)


def config_if_there(folder: Path) -> RunConfig | None:
    """Returns the run's configuration; None where it is not there, or another version's."""
    try:
        return config_of(folder)
    except UserError:
        return None


def config_of(folder: Path) -> RunConfig:
    """Returns the configuration with which the bus of the run in `folder` was last started.

    Where none was started yet, the one that it was to have. Raises UserError where the folder has neither.
    """
    for path in (folder / "config.yaml", folder / "up.yaml"):
        if path.exists():
            return load_config(str(path))
    raise UserError(f"{quote(str(folder))} is no folder of a run: it has no config.yaml")


def settings_of(folder: Path) -> dict[str, Any]:
    """Returns the run's configuration as data, whichever version of this project it is of; empty where there is none."""
    for path in (folder / "config.yaml", folder / "up.yaml"):
        if path.exists():
            try:
                return read_document(str(path))
            except ConfigError as error:
                log.warning("the run's configuration cannot be read", error=str(error))
    return {}


def print_metrics(folder: Path, role: str | None, *, as_json: bool) -> None:
    """Prints all metrics that the folder has, as `zerotir metrics` does."""
    for record in records_of(folder / "metrics.jsonl"):
        if role not in (None, record["role"]):
            continue
        if as_json:
            sys.stdout.write(json.dumps(record) + "\n")
        else:
            values = {name: value for name, value in record.items() if name not in LINE}
            sys.stdout.write(values_line(record["time"], record["id"], record["step"], values) + "\n")


def weights_of(folder: Path) -> str:
    """Returns where weights of the run are while the servers, which have the weight log, do not answer; for people."""
    steps = steps_of(folder)
    found = [f"{path}, after step {steps[-1]['step']}" for path in [folder / "model"] if steps and path.is_dir()]
    found += [str(path) for path in sorted((folder / "checkpoints").glob("step-*")) if path.suffix != ".partial"]
    there = "".join(f"\n  {path}" for path in found) or " no checkpoint"
    return f"the servers, which have the weight log, do not answer; {folder} has{there}"
