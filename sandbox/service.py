"""The execution service: a NATS micro service over the jail; any number of them share the work as one queue group.

Discovery and statistics are those of NATS' service protocol. At most `sandbox.concurrency` programs run at once. When all
slots are taken the answer is `Busy` at once: nothing queues here, the client tries again, perhaps elsewhere. What the
model caused is an answer; what the sandbox caused is a SANDBOX_FAILURE or an error response, for the client to retry,
never program output.
"""

import asyncio
import time
from typing import Any

import nats.errors
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.micro import add_service
from nats.micro.request import Request
from nats.micro.service import EndpointStats, Service

from bus.codec import Message, MessageError, decode, encode
from bus.messages import Busy, CancelExecution, ExecutionRequest, ExecutionResult, Outcome
from configs.schema import SandboxConfig
from sandbox.jail import SandboxUnavailable
from sandbox.pool import Pool
from sandbox.program import SERVICE_NAME, STOP_S, cancel_subject

log = structlog.get_logger()


class SandboxService:
    """Answers execution requests on one subject.

    Attributes, counted since the start: `executions` (programs), `failures` (those that the sandbox failed), `refused`
    (requests answered `Busy`), `cancelled` (by their senders), `busy_seconds` (summed over slots); and `in_flight`, the
    programs that run now.
    """

    def __init__(self, connection: Client, subject: str, pool: Pool, config: SandboxConfig, name: str) -> None:
        """`name` tells this service from others for people."""
        self._connection = connection
        self._subject = subject
        self._pool = pool
        self._config = config
        self._service: Service | None = None
        self._name = name
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self.executions = 0
        self.failures = 0
        self.refused = 0
        self.cancelled = 0
        self.busy_seconds = 0.0

    @property
    def in_flight(self) -> int:
        """Returns the number of programs that run now."""
        return len(self._tasks)

    def statistics(self) -> dict[str, Any]:
        """Returns what `zerotir status` shows of this service."""
        return {
            "name": self._name,
            "slots": self._config.concurrency,
            "in_flight": self.in_flight,
            "executions": self.executions,
            "failures": self.failures,
            "refused": self.refused,
            "cancelled": self.cancelled,
            "busy_seconds": round(self.busy_seconds, 3),
            "idle_jails": self._pool.idle(loaded=False),
            "idle_jails_with_packages": self._pool.idle(loaded=True),
        }

    async def start(self) -> None:
        """Begins to take requests. Raises SandboxUnavailable where the server's messages are too small."""
        needed = self._config.largest_message_bytes
        if needed > self._connection.max_payload:
            raise SandboxUnavailable(
                f"sandbox.max_code_bytes and max_output_bytes need messages of {needed} bytes, the NATS server takes "
                f"{self._connection.max_payload}: raise its max_payload, or lower them"
            )
        self._service = await add_service(
            self._connection,
            name=SERVICE_NAME,
            version="1.0.0",
            description="runs model-written code in nsjail",
            stats_handler=self._answer_statistics,
        )
        await self._service.add_endpoint(name="execute", subject=self._subject, handler=self._handle)
        self._cancellations = await self._connection.subscribe(cancel_subject(self._subject), cb=self._on_cancel)
        # Once the server has the subscription, a request cannot find nobody. The PING of `flush` alone would overtake it.
        await self._connection._flush_pending(force_flush=True)
        await self._connection.flush()

    async def drain(self, grace_s: float) -> None:
        """Takes no more requests; lets programs finish for `grace_s` seconds, ends the rest and answers that it did."""
        if self._service is not None:
            while self._service._endpoints:
                requests = self._service._endpoints.pop()._subscription
                assert requests is not None
                await self._take_no_more(requests)
            await self._service.stop()
            self._service = None
            await self._cancellations.unsubscribe()
        if self._tasks:
            await asyncio.wait(self._tasks.values(), timeout=grace_s)
        for task in self._tasks.values():
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks.values(), timeout=4 * STOP_S)

    async def _take_no_more(self, requests: Subscription) -> None:
        """Ends the subscription once every request that the server has sent to it is handled.

        One that nobody handles makes its sender wait until the time of a program is over that never began. nats-py has no
        public way: `Service.stop` throws away what waits, and in `Subscription.drain` the PING that should come back after
        the last request is written past an UNSUB that still waits to be written.
        """
        await self._connection._send_unsubscribe(requests._id)
        await self._connection._flush_pending(force_flush=True)
        await requests.drain()

    def _answer_statistics(self, endpoint: EndpointStats) -> dict[str, Any]:
        return self.statistics()

    async def _on_cancel(self, message: Msg) -> None:
        try:
            id = decode(message.data, CancelExecution).id
        except MessageError as error:
            log.warning("bad cancellation", reason=str(error))
            return
        if id in self._tasks:
            self.cancelled += 1
            self._tasks[id].cancel()

    async def _handle(self, request: Request) -> None:
        if not request._msg.reply:
            # Nobody would see the result, so nobody could miss it.
            log.warning("a request that asks for no answer is left alone")
            return
        try:
            wanted = decode(request.data, ExecutionRequest)
        except MessageError as error:
            log.warning("bad request", reason=str(error))
            await request.respond_error("400", str(error)[:200])
            return
        if len(self._tasks) >= self._config.concurrency:
            self.refused += 1
            await request.respond(encode(Busy()))
            return
        if wanted.id in self._tasks:
            await request.respond_error("400", "an execution of this id runs already")
            return
        # In a task of its own: NATS hands the next request over only when this one returns.
        task = asyncio.create_task(self._serve(request, wanted))
        self._tasks[wanted.id] = task
        task.add_done_callback(lambda _: self._tasks.pop(wanted.id))

    async def _serve(self, request: Request, wanted: ExecutionRequest) -> None:
        begin = time.monotonic()
        answer: Message | None = None
        reason = "this sandbox is stopping"
        try:
            answer = await self._execute(wanted)
        except (OSError, RuntimeError) as error:
            self.executions += 1
            self.failures += 1
            reason = f"{type(error).__name__}: {error}"
            log.error("a jail could not be started or ended", reason=reason)
        finally:
            # Also when cancelled: the client then asks another service at once.
            self.busy_seconds += time.monotonic() - begin
            await self._answer(request, answer, reason)

    async def _answer(self, request: Request, answer: Message | None, reason: str) -> None:
        try:
            if answer is None:
                await request.respond_error("503", reason)
            else:
                await request.respond(encode(answer))
        except nats.errors.Error as error:
            log.warning("an answer could not be sent; the client will ask again", error=str(error))

    async def _execute(self, wanted: ExecutionRequest) -> ExecutionResult:
        result = await self._pool.run(wanted.code, wanted.timeout_s)
        self.executions += 1
        if result.outcome is Outcome.SANDBOX_FAILURE:
            self.failures += 1
            log.error("the sandbox failed", detail=result.detail)
        return result
