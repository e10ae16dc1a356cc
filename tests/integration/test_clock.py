"""The run's time on a real server: a host whose clock is wrong, or set meanwhile, changes nothing."""

import time
from collections.abc import Callable

import pytest
from structlog.testing import capture_logs

from actors import leases
from actors.leases import LeasedTicket, TicketSource
from bus import clock
from bus.address import BusAddress
from bus.connection import Bus, open_bus
from bus.messages import Metrics
from bus.metrics import MetricsWriter, follow_metrics
from bus.presence import Announcer, last_sign, who_is_alive
from configs.bus import BusConfig
from launch.views import presence_line
from tests.integration.test_tickets import ticket

DAY_S = 86_400.0
CONFIG = BusConfig(timeout_s=5)
right = time.time


@pytest.fixture
def wrong_host(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the clock of this host ahead by so many seconds."""

    def set_ahead(seconds: float) -> None:
        monkeypatch.setattr(time, "time", lambda: right() + seconds)

    return set_ahead


@pytest.mark.parametrize("ahead_s", [DAY_S, -DAY_S])
async def test_a_host_with_a_wrong_clock_writes_the_buss_time_and_says_so(
    own_run: BusAddress, wrong_host: Callable[[float], None], ahead_s: float
):
    wrong_host(ahead_s)
    with capture_logs() as logs:
        async with open_bus(own_run.for_role("actor"), CONFIG, "a") as bus:
            before, now, after = right(), bus.clock.now(), right()
            assert before - 60 < now < after + 60
            await Announcer(bus, "actor", "a").say("ready")
            written = await MetricsWriter(bus, "actor", "a").write({"tokens_per_s": 1.0})
            assert before - 60 < written < right() + 60
    [warning] = [line for line in logs if "clock" in line["event"]]
    assert abs(warning["ahead_s"] - ahead_s) < 60
    # Another host, whose clock is right, sees how long ago that was.
    wrong_host(0.0)
    async with open_bus(own_run.for_role("observer"), CONFIG, "o") as bus:
        [presence] = await who_is_alive(bus)
        age = int(presence_line(presence, bus.clock.now()).rpartition(" s ago")[0].split()[-1])
        assert 0 <= age < 60
        sign = await last_sign(bus, "actor")
        assert 0 <= float(sign.split(" s ago")[0].split()[-1]) < 60
        async for _, metrics in follow_metrics(bus):
            assert isinstance(metrics, Metrics)
            assert abs(metrics.time - bus.clock.now()) < 60
            break


async def test_a_clock_that_is_set_during_a_run_changes_nothing(
    own_run: BusAddress, wrong_host: Callable[[float], None]
):
    async with open_bus(own_run.for_role("actor"), CONFIG, "a") as bus:
        for ahead_s in (DAY_S, -DAY_S):
            wrong_host(ahead_s)
            assert abs(bus.clock.now() - right()) < 60
            await bus.clock.read(5)
            assert abs(bus.clock.now() - right()) < 60


async def test_a_reading_that_took_long_does_not_replace_a_better_one(bus: Bus, monkeypatch: pytest.MonkeyPatch):
    await bus.clock.read(5)
    monkeypatch.setattr(clock, "LONGEST_REQUEST_S", -1.0)
    bus.clock._offset += 1000
    await bus.clock.read(5)
    assert bus.clock.now() > right() + 900


async def test_a_lease_runs_out_while_the_machine_is_suspended(bus: Bus, monkeypatch: pytest.MonkeyPatch):
    await bus.publish(bus.names.tickets, ticket(1))
    [leased] = await TicketSource(bus).pull(1, 5.0)
    assert isinstance(leased, LeasedTicket)
    assert not leased.lapsed
    monkeypatch.setattr(leases, "boot_time", lambda: time.clock_gettime(time.CLOCK_BOOTTIME) + 61)
    assert leased.lapsed
