"""`zerotir up`: every role on this machine, each by the command that a user would type.

    supervisor --starts--> bus, then sandbox, actors and learner
               --reads---> presence (start-up and progress) and the metrics log (one line a step)

A role that dies is started again: the bus on its store and port, the learner from its newest checkpoint. The run ends when
the learner has done its steps and an evaluator, if there is one, has scored the last version (status 0), on Ctrl-C or when
somebody else told the learner to stop (130), or with an error when a role keeps failing (`runtime.retry.Restarts`) or needs
something of the user. In every case all roles are stopped, and their process groups cleared, before the command returns. The
bus ends last: roles that were started elsewhere hear from it that the run is done.
"""

import argparse
import asyncio
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote

import structlog

from bus.address import CREDENTIALS, BusAddress
from bus.connection import Bus, BusError, open_bus
from bus.metrics import steps_of
from configs.agreement import Change, require_effect
from configs.errors import UserError
from configs.loading import ConfigError, dump_config, load_config
from configs.schema import RunConfig
from grading.reward_source import with_digest
from launch.bus_role import LOCK
from launch.cores import Share, shares, visible_gpus
from launch.ending import LEAVING
from launch.joining import new_run_id
from launch.page_process import PageProcess
from launch.preflight import require_inputs
from launch.processes import STOPPED, RoleProcess
from launch.run_plots import plot_run
from launch.screen import live_line, say
from launch.tracker_processes import TrackerProcesses
from launch.up_screen import RunScreen, alive, relay
from launch.views import summary
from learner.tickets.ledger import BalanceError
from runtime.files import make_folder
from runtime.locks import HeldError, held
from runtime.logs import set_up_logs
from runtime.retry import Restarts

log = structlog.get_logger()

RESTARTS = 5
"""How often in a row a role is started again."""
PROGRESS_STEPS = 3
"""New steps in the life of a role after which its death is the first one again."""
BUS_TIMEOUT_S = 60.0
OTHERS_S = 60.0
"""Bounds how long the bus of a run that is done stays for roles that were started by hand."""


class RunFailedError(RuntimeError):
    """The run cannot go on; the text says which role ended, and how."""

    def __init__(self, text: str, code: int = 1) -> None:
        super().__init__(text)
        self.code = code
        """The exit status: 2 where a role found something that the user has to fix."""


def start(arguments: argparse.Namespace) -> int:
    """Runs every role, or goes on with the run that `--resume` names; returns the exit status."""
    if arguments.config is None:
        if arguments.resume is None:
            raise ConfigError("up needs a CONFIG, or --resume with the folder of a run")
        arguments.config = load_config(str(arguments.resume / "config.yaml"), arguments.set)
    return _up(with_digest(arguments.config), arguments.resume, verbose=arguments.verbose)


def _up(config: RunConfig, resume: Path | None, *, verbose: bool) -> int:
    given = shares(config, [] if config.emulated else visible_gpus())
    if resume and not resume.is_dir():
        raise UserError(f"--resume {quote(str(resume))}: there is no such folder of a run")
    folder = resume.resolve() if resume else Path(config.launch.runs_dir) / new_run_id(config.name)
    recorded = folder / "config.yaml"
    changed: list[Change] = []
    if recorded.exists():
        changed = require_effect(load_config(str(recorded)), config, "resume")
    require_inputs(config, folder)
    make_folder(folder / "logs", "launch.runs_dir")
    try:
        with held(folder / "up.lock"):
            return _supervise(config, folder, given, changed, verbose=verbose)
    except HeldError as error:
        raise UserError(
            f"the run in {folder} is on already: `zerotir up` is {error.holder}; stop that one first"
        ) from error


def _supervise(
    config: RunConfig, folder: Path, given: Mapping[str, Share], changed: Sequence[Change], *, verbose: bool
) -> int:
    set_up_logs("up", "up", folder.name, folder / "logs" / "up.jsonl", terminal=None)
    for change in changed:
        say(f"changed: {change}")
    try:
        with live_line() as show:
            screen = RunScreen(config, steps_of(folder), show)
            code = asyncio.run(_Supervisor(config, folder, given, screen).run(verbose=verbose))
    except (RunFailedError, BusError) as error:
        log.error("run failed", error=str(error))
        say(f"FAILED: {error}", matters=True)
        say(f"each role's log: {folder / 'logs'}; what an error means: docs/troubleshooting.md", matters=True)
        again = f"go on with: {_resume_hint(folder)}" if steps_of(folder) else "start a new run"
        say(f"once that is fixed, {again}", matters=True)
        return error.code if isinstance(error, RunFailedError) else 1
    plots = plot_run(folder)
    try:
        say(summary(folder, plots), matters=True)
    except BalanceError as error:
        say(f"FAILED: {error}", matters=True)
        return 1
    if code == STOPPED:
        begun = (folder / "config.yaml").exists()
        again = f"stopped; go on with: {_resume_hint(folder)}" if begun else "stopped before the run had begun"
        say(again, matters=True)
    return code


def _resume_hint(folder: Path) -> str:
    return f"zerotir up --resume {quote(str(folder))}"


class _Supervisor:
    def __init__(self, config: RunConfig, folder: Path, given: Mapping[str, Share], screen: RunScreen) -> None:
        self._config = config
        self._folder = folder
        self._given = given
        self._screen = screen
        self._roles: dict[str, RoleProcess] = {}
        self._restarts: dict[str, Restarts] = {}
        self._started_at_step: dict[str, int] = {}
        self._trackers = TrackerProcesses(config.launch.trackers, folder)
        self._page = PageProcess(folder)
        self._url = ""
        self._stop = asyncio.Event()

    async def run(self, *, verbose: bool) -> int:
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._stop.set)
        say(f"run {self._folder.name}: logs, metrics and results in {self._folder}")
        (self._folder / "up.yaml").write_text(dump_config(self._config))
        relaying = asyncio.create_task(relay(self._folder / "logs")) if verbose else None
        try:
            address = await self._start_bus()
            if address is None:
                return STOPPED
            self._url = address.url
            async with open_bus(address, self._config.bus, "up") as bus:
                # On resume the log holds what was measured before.
                first_new = (await bus.js.stream_info(bus.names.stream("METRICS"))).state.last_seq + 1
                if done := steps_of(self._folder):
                    say(
                        f"goes on with a run of which {len(done)} steps were measured, the last: step {done[-1]['step']}"
                    )
                names = ["sandbox", *(f"actor-{n}" for n in range(self._config.launch.actors)), "learner"]
                for name in [*names, "evaluator"] if self._config.launch.evaluator else names:
                    await self._start(name, name.partition("-")[0], joins=True)
                self._trackers.start()
                if self._config.launch.page:
                    self._page.start()
                code = await self._watch(bus, first_new)
                if code == 0:
                    await self._let_others_leave(bus)
                    await self._trackers.finish(self._stop)
                return code
        finally:
            self._screen.stopping()
            others = (role.stop() for name, role in self._roles.items() if name != "bus")
            await asyncio.gather(self._trackers.stop(), self._page.stop(), *others)
            if "bus" in self._roles:
                await self._roles["bus"].stop()
            if relaying is not None:
                relaying.cancel()

    async def _start(self, name: str, role: str, *, joins: bool) -> None:
        own = self._folder / CREDENTIALS / f"{role}.json"
        where = ["--bus", str(own), "--id", name] if joins else ["--folder", str(self._folder)]
        # Those that stay are ended here.
        command = {"evaluator": ["eval", "--follow"], "actor": [role, "--stay"], "sandbox": [role, "--stay"]}.get(
            role, [role]
        )
        if role == "learner" and (ranks := self._config.launch.learner_ranks) > 1:
            command = [role, "--ranks", str(ranks)]
        arguments = [*command, str(self._folder / "up.yaml"), *where]
        share = self._given.get(name)
        process = RoleProcess(name, arguments, self._folder / "logs" / f"{name}.out", share)
        await process.start()
        self._roles[name] = process
        waits = (
            self._config.learner.batch_timeout_s,
            self._config.actor.weights_timeout_s,
            self._config.actor.engine.start_timeout_s,
            self._config.bus.reconnect_s,
        )
        self._restarts.setdefault(name, Restarts(RESTARTS, 2 * max(waits)))
        self._started_at_step[name] = self._screen.last_step

    async def _start_bus(self) -> BusAddress | None:
        """Waits for the bus to answer; None when told to stop meanwhile."""
        path = self._folder / "bus.json"
        before = path.stat().st_mtime_ns if path.exists() else 0
        await self._start("bus", "bus", joins=False)
        deadline = time.monotonic() + BUS_TIMEOUT_S
        # On resume an earlier bus.json is there already: only a newer one says that the bus is up, and only its lock that it
        # is this one.
        while not (self._bus_is_ours() and path.exists() and path.stat().st_mtime_ns != before):
            if self._stop.is_set():
                return None
            if self._roles["bus"].code is not None or time.monotonic() > deadline:
                raise RunFailedError(self._why_no_bus(), code=2 if self._roles["bus"].code == 2 else 1)
            await asyncio.sleep(0.05)
        return BusAddress.read(path).for_role("observer")

    def _bus_is_ours(self) -> bool:
        lock = self._folder / LOCK
        return lock.exists() and lock.read_text().startswith(f"process {self._roles['bus'].pid} ")

    def _why_no_bus(self) -> str:
        bus = self._roles["bus"]
        return f"bus {bus.ending()}" if bus.code is not None else f"the bus did not answer in {BUS_TIMEOUT_S:.0f} s"

    async def _watch(self, bus: Bus, first_new: int) -> int:
        tasks = {
            asyncio.create_task(self._screen.show_steps(bus, first_new)),
            asyncio.create_task(self._screen.show_presence(bus)),
            asyncio.create_task(self._screen.show_alarms(bus)),
            asyncio.create_task(self._until_done()),
            asyncio.create_task(self._stop.wait()),
        }
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
        for task in done:
            task.result()
        return STOPPED if self._stop.is_set() else 0

    async def _until_done(self) -> None:
        """Returns once the learner has done its steps or was told to stop; restarts what may be restarted."""
        begun = time.monotonic()
        while True:
            if time.monotonic() - begun > self._config.launch.start_timeout_s:
                self._require_signs_of_life()
            for name, role in list(self._roles.items()):
                if role.code is None:
                    continue
                if name == "learner" and role.code == STOPPED:
                    say("learner was told to stop before its last step")
                    self._stop.set()
                    return
                if name == "learner" and role.code == 0:
                    # The metrics of the last step are on their way to the screen.
                    await asyncio.sleep(1.0)
                    if "evaluator" not in self._roles:
                        return
                    await self._make_room_for_evaluator()
                elif name == "evaluator" and "learner" not in self._roles:
                    if role.code != 0:
                        text = f"training is done, but the last version is not scored: evaluator {role.ending()}"
                        raise RunFailedError(text, role.code or 1)
                    say("evaluator has scored the last version")
                    return
                else:
                    await self._restart(name, role)
            if self._restarts["bus"].count and (now := BusAddress.read(self._folder / "bus.json").url) != self._url:
                raise RunFailedError(
                    f"another program has taken the port of the bus, which was {self._url} and is {now}: roles that are up "
                    "do not find it there"
                )
            await asyncio.sleep(0.2)

    def _require_signs_of_life(self) -> None:
        if missing := set(self._roles) - self._screen.seen:
            names = ", ".join(sorted(missing))
            raise RunFailedError(f"not ready after {self._config.launch.start_timeout_s:.0f} s: {names}")

    async def _make_room_for_evaluator(self) -> None:
        """Ends what training needs: the evaluator takes the last version, and leaves by itself once it has scored it."""
        say("training is done; the evaluator scores the last version (Ctrl-C ends it)")
        done = [name for name in self._roles if name == "learner" or name.startswith("actor")]
        await asyncio.gather(*(self._roles.pop(name).stop() for name in done))

    async def _let_others_leave(self, bus: Bus) -> None:
        """Keeps the bus for actors, sandboxes and evaluators that somebody else started, until they have left.

        Waits while an evaluator is alive, and then for `OTHERS_S` seconds, or until told to stop: then they lose the bus,
        and end with that error.
        """
        deadline = time.monotonic() + OTHERS_S
        said = False
        while not self._stop.is_set():
            there = await alive(bus)
            leaving = [presence for presence in there or () if presence.role in LEAVING]
            strangers = [presence for presence in leaving if presence.id not in self._roles]
            others = ", ".join(sorted(presence.id for presence in strangers))
            if there is not None and not others:
                return
            if any(presence.role == "evaluator" for presence in strangers):
                deadline = time.monotonic() + OTHERS_S
            if time.monotonic() > deadline:
                say(f"still there after {OTHERS_S:.0f} s: {others or 'nobody knows who'}; they lose their bus now")
                return
            if others and not said:
                say(f"waits for roles that were started elsewhere: {others} (Ctrl-C does not wait)")
                said = True
            await asyncio.sleep(0.5)

    async def _restart(self, name: str, role: RoleProcess) -> None:
        if name == "evaluator" and role.code != 2:
            # With 0 it leaves once the learner has done its last step, which ends in a moment as well.
            say(
                "evaluator has scored the last version"
                if role.code == 0
                else f"{name} {role.ending()}; training goes on"
            )
            await role.stop()
            del self._roles[name]
            return
        # Status 2 is for the user to fix: trying again would not help.
        if role.code == 2:
            raise RunFailedError(f"{name} {role.ending()}", code=2)
        restarts = self._restarts[name]
        if not restarts.died(progress=self._screen.last_step - self._started_at_step[name] >= PROGRESS_STEPS):
            raise RunFailedError(f"{name} {role.ending()}, and so {RESTARTS} times before with nothing done")
        say(f"{name} {role.ending()}; it is started again ({restarts.count} of {RESTARTS} restarts in a row)")
        await role.stop()
        await self._start(name, name.partition("-")[0], joins=name != "bus")
