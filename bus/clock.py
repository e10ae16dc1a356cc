"""The run's time: that of the server, carried on between two readings by this machine's counting of seconds.

Clocks of hosts differ, and are set while a run is on. So every time in a message is the run's, and only such times are
compared with each other: ages and durations are right between any two hosts, to within a request to the server. Where the
server's own clock is set, times jump once, by as much.
"""

import asyncio
import json
import time
from datetime import datetime

import nats.errors
import structlog
from nats.aio.client import Client

from runtime.clock import boot_time

log = structlog.get_logger()

READ_EVERY_S = 60.0
FIRST_EVERY_S = 5.0
"""Before the first reading that succeeds."""
LONGEST_REQUEST_S = 1.0
"""A reading that took longer is not exact enough to take the place of an earlier one."""
WORTH_SAYING_S = 5.0


class RunClock:
    """One connection's reading of the server's clock; until the first one it is this host's clock."""

    def __init__(self, client: Client, stream: str) -> None:
        """`stream` is one that the role may ask about: the server's answers carry its time."""
        self._client = client
        self._subject = f"$JS.API.STREAM.INFO.{stream}"
        self._offset = time.time() - boot_time()
        self._read = False

    def now(self) -> float:
        """Returns the seconds since the epoch, by the server's clock."""
        return boot_time() + self._offset

    async def read(self, timeout_s: float) -> None:
        """Asks the server for its time; an answer that does not come, or is late, changes nothing."""
        asked = boot_time()
        try:
            answer = json.loads((await self._client.request(self._subject, b"", timeout=timeout_s)).data)
        except (TimeoutError, nats.errors.Error) as error:
            log.debug("the server did not say what time it is", error=str(error))
            return
        taken = boot_time() - asked
        if "ts" not in answer or (self._read and taken > LONGEST_REQUEST_S):
            return
        self._offset = datetime.fromisoformat(answer["ts"]).timestamp() - (asked + taken / 2)
        ahead = time.time() - self.now()
        if not self._read and abs(ahead) > WORTH_SAYING_S:
            log.warning("this host's clock is not the bus's; messages carry the bus's time", ahead_s=round(ahead, 1))
        self._read = True

    async def keep(self, timeout_s: float) -> None:
        """Reads it again and again until cancelled."""
        while True:
            await asyncio.sleep(READ_EVERY_S if self._read else FIRST_EVERY_S)
            await self.read(timeout_s)
