"""The dispatcher: turns admitted groups into tickets on the stream, each exactly once.

Ticket k is message k of its stream, published on the condition that k - 1 messages came before it. So a dispatcher that
starts again cannot issue a ticket twice: the stream refuses it, and the dispatcher skips what the stream already has. Where
the stream has lost its last messages, they are issued again, under their numbers.
"""

import asyncio
import re

import nats.js.errors
import structlog

from bus.connection import TRANSIENT_ERRORS, WRONG_LAST_SEQUENCE, Bus, BusError, acknowledgement_timeouts
from bus.messages import Ticket
from configs.schema import RunConfig
from learner.tickets.ledger import Ledger
from runtime.retry import Backoff
from tasks.problems import ProblemOrder

log = structlog.get_logger()


class Dispatcher:
    """Issues the tickets of groups in order of their numbers."""

    def __init__(self, bus: Bus, config: RunConfig, template: str, problems: ProblemOrder, ledger: Ledger) -> None:
        """`template`: text of the prompt's, with its placeholder."""
        self._bus = bus
        self._template = template
        self._config = config
        self._problems = problems
        self._ledger = ledger
        self._last = -1
        self._issuing = asyncio.Lock()

    async def issue(self) -> None:
        """Publishes the tickets of all admitted groups that the stream does not hold yet. Raises BusError when it cannot.

        After a restart these may be tickets that a checkpoint counts as issued, and tickets that the bus has lost.
        """
        async with self._issuing:
            if self._last < 0:
                self._last = await self._last_sequence()
            await self._issue()

    async def recover(self) -> bool:
        """Issues again what the stream has lost; returns whether it had lost any. Raises BusError, what nats-py raises."""
        async with self._issuing:
            before = self._last
            self._last = (await self._bus.js.stream_info(self._bus.names.stream("TICKETS"))).state.last_seq
            lost = self._last < before
            if lost:
                await self._issue()
            return lost

    async def _issue(self) -> None:
        while self._last < self._ledger.issued:
            await self._skip_answered()
            if self._last < self._ledger.issued:
                for ticket in self.tickets(self._ledger.group_of(self._last + 1)):
                    if ticket.number == self._last + 1:
                        await self._publish(ticket)

    async def _skip_answered(self) -> None:
        """Leaves out answered tickets up to the first open one: only a stream that has lost messages asks for them again."""
        first = next(iter(self._ledger.unanswered()), self._ledger.issued + 1)
        if self._last + 1 < first:
            await self._skip_to(first)

    async def _skip_to(self, number: int) -> None:
        """Has the stream go on with ticket `number`; open ones below it are found by `learner.tickets.lost`."""
        log.warning("the bus has lost tickets", first=self._last + 1, last=number - 1)
        await self._bus.skip_to("TICKETS", number)
        self._last = number - 1

    def tickets(self, group: int) -> list[Ticket]:
        """Returns the tickets of a group; a function of its number, but for the time of issue."""
        problem = self._problems[group]
        config = self._config
        return [
            Ticket(
                number=number,
                group=group,
                sample=sample,
                problem_id=problem.id,
                problem=problem.text,
                answer=problem.answer,
                template=self._template,
                chat=config.tasks.prompt.chat,
                grading=config.tasks.grading,
                rollout=config.rollout,
                min_version=self._ledger.issued_under(group),
                issued_at=self._bus.clock.now(),
            )
            for sample, number in enumerate(self._ledger.tickets(group))
        ]

    async def _publish(self, ticket: Ticket) -> None:
        headers = {"Nats-Expected-Last-Sequence": str(ticket.number - 1)}
        backoff = Backoff(self._bus.config.reconnect_s)
        refused: Exception
        refused_before: Exception | None = None
        timeouts = acknowledgement_timeouts(self._bus.config)
        while True:
            try:
                self._last = await self._bus.publish(self._bus.names.tickets, ticket, headers, next(timeouts))
                return
            except nats.js.errors.APIError as error:
                if error.err_code not in WRONG_LAST_SEQUENCE and not isinstance(error, TRANSIENT_ERRORS):
                    raise
                refused = error
            except TRANSIENT_ERRORS as error:
                refused = error
            # The acknowledgement may have been lost, or another dispatcher was first: tickets are a function of their
            # number. Where the stream holds something else under this number, `learner.tickets.lost` finds it.
            self._last = await self._last_sequence()
            if self._last != ticket.number - 1:
                # The number is taken, or earlier tickets are gone, and come first.
                return
            if backoff.over:
                raise BusError(
                    f"ticket {ticket.number} could not be issued on {self._bus.names.tickets} at {self._bus.address.url} in "
                    f"{self._bus.config.reconnect_s:.0f} s; the stream's last answer: {refused}"
                )
            log.warning("ticket refused, will try again", ticket=ticket.number, error=str(refused))
            await backoff.pause()
            if (counted := _counted(refused)) > self._last and counted == _counted(refused_before):
                await self._skip_to(counted + 1)
                return
            refused_before = refused

    async def _last_sequence(self) -> int:
        try:
            info = await self._bus.js.stream_info(self._bus.names.stream("TICKETS"))
        except (*TRANSIENT_ERRORS, nats.js.errors.NotFoundError) as error:
            log.warning("ticket stream out of reach", error=str(error))
            return max(self._last, 0)
        return info.state.last_seq


def _counted(refused: Exception | None) -> int:
    """Returns up to which number a refusal says that the stream has counted; 0 where it says nothing of it.

    After a damaged block nats-server (2.15) goes on counting where the stream had ended, whatever it still holds.
    """
    if not isinstance(refused, nats.js.errors.APIError) or refused.err_code not in WRONG_LAST_SEQUENCE:
        return 0
    found = re.search(r"(\d+)$", refused.description or "")
    return int(found[1]) if found else 0
