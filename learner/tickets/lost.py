"""Lost tickets: those that are gone and have no result are issued again and, in the end, answered.

An actor acknowledges a ticket once its result is stored. If the learner cannot use that result (it does not decode, or
breaks the ticket's limits), or the ticket itself was damaged, no actor would work on it again and the run would never
end. So a waiting learner looks every `LOOK_EVERY_S` seconds for open tickets that have no result and are in neither
ticket stream. Such a ticket may be answered by a result that is stored but not read yet, so it counts as lost only once
the learner has read what the result stream held at that look. A lost ticket goes to the retries. A ticket that is lost
`MAX_ISSUES` times more is answered by a failure in the result log, like every other.

Actors write to the retries as well, and could leave there what no actor can work on. So a look takes off what is no open
ticket, and of the first open tickets also what is not as it was issued.

A look costs two requests, and one for each of the first `READ_FIRST` open tickets, which are those that hold the
learner up: what lies under a ticket's number may be something else than the ticket, and with a damaged block the server may
count messages that it can neither read nor deliver. The answer names the gaps in the ticket stream; there are at most as
many as open tickets.
"""

import json
import re
import time
from collections import Counter
from typing import Any

import nats.errors
import nats.js.errors
import structlog

from bus.codec import MessageError, decode
from bus.connection import TRANSIENT_ERRORS, Bus, BusError
from bus.messages import Failure, Ticket
from learner.tickets.dispatcher import Dispatcher
from learner.tickets.ledger import Ledger

log = structlog.get_logger()

LOOK_EVERY_S = 10.0
MAX_ISSUES = 3
READ_FIRST = 16
MOST_TAKEN_OFF = 100
"""Subjects of the retries that one look takes off."""


class LostTickets:
    """Looks for them; one learner's."""

    def __init__(self, bus: Bus, ledger: Ledger, dispatcher: Dispatcher, id: str) -> None:
        """`id` is that of the learner."""
        self._bus = bus
        self._ledger = ledger
        self._dispatcher = dispatcher
        self._id = id
        self._look_at = time.monotonic() + LOOK_EVERY_S
        self._suspects: dict[int, int] = {}
        """Tickets that were gone at the last look, and up to where the result log may answer them."""
        self._issued: Counter[int] = Counter()

    async def look(self) -> None:
        """Looks if it is time to; what the bus does not answer now is asked again at the next time."""
        if time.monotonic() < self._look_at:
            return
        try:
            await self.look_now()
        except (*TRANSIENT_ERRORS, nats.errors.Error, BusError) as error:
            log.warning("cannot look for lost tickets, will try again", error=str(error))
        self._look_at = time.monotonic() + LOOK_EVERY_S

    def hurry(self) -> None:
        """Looks as soon as it can: the bus has lost messages, which is no ticket's fault."""
        self._issued.clear()
        self._suspects.clear()
        self._look_at = 0.0

    async def look_now(self) -> None:
        """Issues again what was gone at the look before already, and notes what is now. Raises what nats-py raises."""
        gone = await self._gone()
        # Asked for after the tickets: a result is stored before its ticket leaves.
        stored = (await self._bus.js.stream_info(self._bus.names.stream("RESULTS"))).state.last_seq
        if stored < self._ledger.position:
            # The bus has lost results: what is stored now would not be read, and is nobody's fault (`learner.bus_loss`).
            return
        for ticket in sorted(gone):
            if ticket in self._suspects and self._ledger.position >= self._suspects[ticket]:
                await self._issue(ticket)
                gone.discard(ticket)
        self._suspects = {ticket: self._suspects.get(ticket, stored) for ticket in gone}

    async def _gone(self) -> set[int]:
        unanswered = self._ledger.unanswered()
        state = await self._state("TICKETS", {"deleted_details": True})
        deleted = set(state.get("deleted") or ())
        gone = {n for n in unanswered if n < state["first_seq"] or n in deleted}
        first = unanswered[:READ_FIRST]
        gone |= {n for n in first if n not in gone and not await self._is_there(n, "TICKETS", seq=n)}
        retried = await self._retried(unanswered, state["last_seq"])
        gone -= {
            n
            for n in gone & retried
            if n not in first or await self._is_there(n, "RETRIES", subject=self._bus.names.retry(n))
        }
        return gone

    async def _retried(self, unanswered: list[int], last: int) -> set[int]:
        """Returns the numbers of the open tickets among the retries, and takes off what lies there besides.

        Not what a learner before this one issued, up to ticket `last`, and this one will admit again.
        """
        offered = await self._state("RETRIES", {"subjects_filter": self._bus.names.retries})
        wanted = {*unanswered, *range(self._ledger.issued + 1, last + 1)}
        retried: set[int] = set()
        useless: list[str] = []
        for subject in offered.get("subjects") or ():
            name = subject.rpartition(".")[2]
            if re.fullmatch("[1-9][0-9]{0,15}", name) and int(name) in wanted:
                retried.add(int(name))
            else:
                useless.append(subject)
        for subject in useless[:MOST_TAKEN_OFF]:
            await self._bus.js.purge_stream(self._bus.names.stream("RETRIES"), subject=subject)
        if useless:
            log.info("retries that are no open tickets are taken off", subjects=len(useless), first=useless[0][-64:])
        return retried

    async def _is_there(self, number: int, kind: str, **which: Any) -> bool:
        """Returns whether a message of the stream `kind` can be read and is this ticket, as it was issued."""
        try:
            message = await self._bus.js.get_msg(self._bus.names.stream(kind), **which)
            ticket = decode(message.data or b"", Ticket)
        except (nats.js.errors.NotFoundError, MessageError):
            return False
        # Only the learner writes to the other stream.
        return ticket.number == number if kind == "TICKETS" else self._as_issued(number, ticket.issued_at) == ticket

    def _as_issued(self, number: int, issued_at: float) -> Ticket:
        tickets = self._dispatcher.tickets(self._ledger.group_of(number))
        [ticket] = [ticket for ticket in tickets if ticket.number == number]
        return ticket.model_copy(update={"issued_at": issued_at})

    async def _state(self, kind: str, details: dict[str, object]) -> dict:
        where = f"$JS.API.STREAM.INFO.{self._bus.names.stream(kind)}"
        answer = await self._bus.client.request(where, json.dumps(details).encode(), timeout=self._bus.config.timeout_s)
        answered = json.loads(answer.data)
        if "error" in answered:
            raise BusError(f"{where}: {answered['error']}")
        return answered["state"]

    async def _issue(self, number: int) -> None:
        group = self._ledger.group_of(number)
        self._issued[number] += 1
        if self._issued[number] > MAX_ISSUES:
            log.error("a ticket gets no usable result: it ends as a failure", ticket=number, issued=MAX_ISSUES + 1)
            failure = Failure(
                ticket=number,
                group=group,
                reason="no usable result",
                detail=f"issued {MAX_ISSUES + 1} times; the dead letters hold what came of it",
                attempts=MAX_ISSUES + 1,
                actor=self._id,
                published_at=self._bus.clock.now(),
                run=self._bus.address.run,
            )
            await self._bus.publish(self._bus.names.results, failure)
            return
        log.warning("a ticket is gone without a usable result: it is issued again", ticket=number)
        # What lies there under its number is not it.
        subject = self._bus.names.retry(number)
        await self._bus.js.purge_stream(self._bus.names.stream("RETRIES"), subject=subject)
        await self._bus.publish(subject, self._as_issued(number, self._bus.clock.now()))
