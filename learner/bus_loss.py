"""Goes on with a run whose bus has lost messages that it had acknowledged.

JetStream acknowledges before its files are on the disk, so a power failure of its host loses the last seconds; a damaged
block, or a server that was put in the place of another one, can lose more. All that makes the run lies on the learner's disk
or follows from it: checkpoint, archive, weights. So a learner that waits looks when its connection comes back, and every
`LOOK_EVERY_S` seconds, since a server of a cluster that it is not connected to may have lost a stream:

    stream     what may be lost                   what happens
    TICKETS    open tickets                       issued again under their numbers (`Dispatcher.recover`)
    RESULTS    results that were read             are in the archive: reading goes on behind them (`ResultLog.recover`)
               results that were not read         their tickets are in no stream any more: issued again (`LostTickets`)
    WEIGHTS    the newest versions                a snapshot of the newest one (`WeightWriter.require_head`)
    METRICS    what `metrics.jsonl` holds         the stream goes on behind it (`MetricsRecorder.recover`)
    run        the record of model and template   written again

Sequences never go back: a stream that ends too early is emptied and continued behind the last sequence that anybody may have
seen. So nobody who reads it needs to be told. A learner that starts looks in the same way when it opens each of them.
"""

import time
from collections.abc import Awaitable, Callable

import nats.errors
import nats.js.errors
import structlog

from bus.connection import TRANSIENT_ERRORS, Bus, BusError
from bus.metrics import MetricsRecorder
from learner.tickets.dispatcher import Dispatcher
from learner.tickets.lost import LostTickets
from learner.tickets.result_log import ResultLog
from learner.weight_publisher import WeightPublisher
from runtime.retry import Backoff

log = structlog.get_logger()

LOOK_EVERY_S = 10.0


class BusLoss:
    """Looks for losses and repairs them; one learner's."""

    def __init__(
        self,
        bus: Bus,
        results: ResultLog,
        dispatcher: Dispatcher,
        lost: LostTickets,
        weights: WeightPublisher,
        recorder: MetricsRecorder,
        record: Callable[[], Awaitable[None]],
    ) -> None:
        """`record` writes the run's record where it is missing."""
        self._bus = bus
        self._results = results
        self._dispatcher = dispatcher
        self._lost = lost
        self._weights = weights
        self._recorder = recorder
        self._record = record
        self._seen = bus.client.stats["reconnects"]
        self._look_at = time.monotonic() + LOOK_EVERY_S
        self._backoff: Backoff | None = None
        self._found: list[str] = []
        """Streams that had lost messages, until that was told."""

    async def look(self) -> None:
        """Looks if it is time to; what the bus does not answer now is asked again.

        Raises BusError where the run's streams are not made again in `bus.reconnect_s` seconds, and what those that repair
        them raise.
        """
        reconnects = self._bus.client.stats["reconnects"]
        due = reconnects != self._seen or time.monotonic() > self._look_at
        if not due or not self._bus.client.is_connected:
            return
        self._backoff = self._backoff or Backoff(self._bus.config.reconnect_s)
        try:
            await self._record()
            # The weights come first: a learner that was deposed finds that out before it empties anything.
            for kind, recover in (
                ("WEIGHTS", self._recover_weights),
                ("RESULTS", self._results.recover),
                ("TICKETS", self._dispatcher.recover),
                ("METRICS", self._recorder.recover),
            ):
                if await recover():
                    self._found.append(kind)
        except (*TRANSIENT_ERRORS, nats.js.errors.APIError) as error:
            if self._backoff.over:
                raise BusError(
                    f"the bus at {self._bus.address.url} is back without the run's streams ({error}): "
                    "start `zerotir bus` on the run's folder, which makes them again"
                ) from error
            log.warning("cannot look for what the bus may have lost, will try again", error=str(error))
            return
        self._seen, self._backoff = reconnects, None
        self._look_at = time.monotonic() + LOOK_EVERY_S
        if self._found:
            streams, self._found = self._found, []
            log.error("the bus has lost messages; the run goes on from the learner's disk", streams=streams)
            self._lost.hurry()

    async def _recover_weights(self) -> bool:
        # What is being published finds a loss by itself, and may take long: collecting results does not wait for it.
        return not self._weights.publishing and not await self._weights.require_head()
