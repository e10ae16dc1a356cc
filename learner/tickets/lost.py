"""Lost tickets: those that are gone and have no result are issued again and, in the end, answered.

An actor acknowledges a ticket once its result is stored. If the learner cannot use that result (it does not decode, or
breaks the ticket's limits), or the ticket itself was damaged, no actor would work on it again and the run would never
end. So a waiting learner looks every `LOOK_EVERY_S` seconds for open tickets that have no result and are in neither
ticket stream. Such a ticket may be answered by a result that is stored but not read yet, so it counts as lost only once
the learner has read what the result stream held at that look. A lost ticket goes to the retries. A ticket that is lost
`MAX_ISSUES` times more is answered by a failure in the result log, like every other.

Actors write to the retries as well, and could leave there what no actor can work on. So each look reads some of them, and
takes off what is no open ticket or not as it was issued. Where there is much of it, the retries are emptied: what was honest
is then missed, and issued again.

A look costs two requests, one for up to `READ_RETRIES` retries, and one for each of the first `READ_FIRST` open tickets,
which are those that hold the learner up: what lies under a ticket's number may be something else than the ticket, and with
a damaged block the server may count messages that it can neither read nor deliver. The answer names the gaps in the ticket
stream; there are at most as many as open tickets.
"""

import contextlib
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
from bus.log_reader import LogReader
from bus.messages import Failure, Ticket
from learner.tickets.dispatcher import Dispatcher
from learner.tickets.ledger import Ledger

log = structlog.get_logger()

LOOK_EVERY_S = 10.0
MAX_ISSUES = 3
READ_FIRST = 16
READ_RETRIES = 256
"""Retries that one look reads."""
MOST_USELESS = 1_000
"""Subjects of the retries that are no open tickets, beyond which they are emptied."""


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
        self._retries = self._reader()

    def _reader(self) -> LogReader:
        # The server takes a message whose subject ends with `>`, and finds it under no other pattern.
        return LogReader(self._bus, self._bus.names.stream("RETRIES"), self._bus.names.retry(">"))

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
        if retried is None:
            return set()
        gone -= {
            n
            for n in gone & retried
            if n not in first or await self._is_there(n, "RETRIES", subject=self._bus.names.retry(n))
        }
        return gone

    async def _retried(self, unanswered: list[int], last: int) -> set[int] | None:
        """Returns the numbers of the tickets among the retries, once what is useless there is taken off; None if all was.

        Useless is what is no open ticket. What a learner before this one issued, up to ticket `last`, and this one will
        admit again, is left alone.
        """
        offered = await self._state("RETRIES", {"subjects_filter": self._bus.names.retry(">")})
        numbers = {number_of(subject) for subject in offered.get("subjects") or ()}
        to_admit = range(self._ledger.issued + 1, last + 1)
        retried = {n for n in numbers if n is not None}
        wanted = {*unanswered, *(n for n in retried if n in to_admit)}
        useless = len(offered.get("subjects") or ()) - len(retried & wanted)
        if useless > MOST_USELESS:
            log.warning("the retries are emptied: there is much in them that is no open ticket", subjects=useless)
            await self._bus.js.purge_stream(self._bus.names.stream("RETRIES"))
            # That honest ones are missing now is no ticket's fault.
            self._issued.clear()
            self._suspects.clear()
            return None
        if offered["messages"]:
            await self._take_off(wanted, to_admit)
        return retried & wanted

    async def _take_off(self, wanted: set[int], to_admit: range) -> None:
        """Reads the next retries and deletes, one by one, what no actor can work on.

        By sequence, not by subject: a subject may be a pattern of others.
        """
        read = await self._retries.entries(READ_RETRIES, timeout_s=0.1)
        if len(read) < READ_RETRIES:
            # From the first one on again.
            await self._retries.close()
            self._retries = self._reader()
        for sequence, subject, data in read:
            number = number_of(subject)
            if number in to_admit or (number in wanted and self._is_as_issued(number, data)):
                continue
            log.info("a retry that is no open ticket is taken off", subject=subject[-64:])
            with contextlib.suppress(nats.js.errors.NotFoundError, nats.js.errors.BadRequestError):
                await self._bus.js.delete_msg(self._bus.names.stream("RETRIES"), sequence)

    async def _is_there(self, number: int, kind: str, **which: Any) -> bool:
        """Returns whether a message of the stream `kind` can be read and is this ticket; a retry, as it was issued."""
        try:
            message = await self._bus.js.get_msg(self._bus.names.stream(kind), **which)
            data = message.data or b""
            # Only the learner writes new tickets.
            return decode(data, Ticket).number == number if kind == "TICKETS" else self._is_as_issued(number, data)
        except (nats.js.errors.NotFoundError, MessageError):
            return False

    def _is_as_issued(self, number: int, data: bytes) -> bool:
        """Returns whether `data` is the ticket `number`, but for the time of its issue."""
        try:
            ticket = decode(data, Ticket)
        except MessageError:
            return False
        return ticket == self._as_issued(number, ticket.issued_at)

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
        if self._issued[number] >= MAX_ISSUES:
            log.error("a ticket gets no usable result: it ends as a failure", ticket=number, issued=MAX_ISSUES + 1)
            failure = Failure(
                ticket=number,
                group=self._ledger.group_of(number),
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
        await self._bus.publish(self._bus.names.retry(number), self._as_issued(number, self._bus.clock.now()))
        self._issued[number] += 1


def number_of(subject: str) -> int | None:
    """Returns the number of the ticket whose retries have this subject; None where it is no ticket's."""
    name = subject.rpartition(".")[2]
    return int(name) if re.fullmatch("[1-9][0-9]{0,15}", name) else None
