"""The execution service: a NATS micro service over the jail; any number of them share the work as one queue group.

At most `sandbox.concurrency` programs run at once. When all places are taken the answer is `Busy` at once: nothing
queues here, the client tries again, perhaps elsewhere. What the model caused is an answer; what the sandbox caused is a
SANDBOX_FAILURE or an error response, for the client to retry, never program output.
"""

import asyncio
import time

import nats.errors
import structlog
from nats.aio.client import Client
from nats.micro import add_service
from nats.micro.request import Request
from nats.micro.service import Service

from bus.codec import Message, MessageError, decode, encode
from bus.messages import Busy, ExecutionRequest, ExecutionResult, Outcome
from configs.schema import SandboxConfig
from sandbox.jail import Jail, SandboxUnavailable
from sandbox.program import STOP_S

log = structlog.get_logger()

ENVELOPE_BYTES = 16 * 1024
"""Bound of everything in a message but the program's text or its output."""


class SandboxService:
    """Answers execution requests on one subject.

    Attributes, counted since the start: `executions` (programs run), `failures` (those that the sandbox failed),
    `busy_seconds` (summed over places); and `in_flight`, the programs that run now.
    """

    def __init__(self, connection: Client, subject: str, jail: Jail, config: SandboxConfig) -> None:
        self._connection = connection
        self._subject = subject
        self._jail = jail
        self._config = config
        self._service: Service | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.executions = 0
        self.failures = 0
        self.busy_seconds = 0.0

    @property
    def in_flight(self) -> int:
        """Programs that run now."""
        return len(self._tasks)

    async def start(self) -> None:
        """Begins to take requests. Raises SandboxUnavailable where the server's messages are too small."""
        # A byte that is not UTF-8 becomes a replacement character of three.
        needed = max(self._config.max_code_bytes, 2 * 3 * self._config.max_output_bytes) + ENVELOPE_BYTES
        if needed > self._connection.max_payload:
            raise SandboxUnavailable(
                f"sandbox.max_code_bytes and max_output_bytes need messages of {needed} bytes, the NATS server takes "
                f"{self._connection.max_payload}: raise its max_payload, or lower them"
            )
        self._service = await add_service(
            self._connection, name="zerotir-sandbox", version="1.0.0", description="runs model-written code in nsjail"
        )
        await self._service.add_endpoint(name="execute", subject=self._subject, handler=self._handle)
        # Once the server has the subscription, a request cannot find nobody.
        await self._connection.flush()

    async def drain(self, grace_s: float) -> None:
        """Takes no more requests; lets programs finish for `grace_s` seconds, ends the rest and answers that it did."""
        if self._service is not None:
            await self._service.stop()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace_s)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=4 * STOP_S)

    async def _handle(self, request: Request) -> None:
        try:
            wanted = decode(request.data, ExecutionRequest)
        except MessageError as error:
            log.warning("bad request", reason=str(error))
            await request.respond_error("400", str(error)[:200])
            return
        if len(self._tasks) >= self._config.concurrency:
            await request.respond(encode(Busy()))
            return
        # In a task of its own: NATS hands the next request over only when this one returns.
        task = asyncio.create_task(self._serve(request, wanted))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, request: Request, wanted: ExecutionRequest) -> None:
        begin = time.monotonic()
        answer: Message | None = None
        reason = "this sandbox is stopping"
        try:
            answer = await self._execute(wanted)
        except OSError as error:
            self.failures += 1
            reason = f"{type(error).__name__}: {error}"
            log.error("no jail could be started", reason=reason)
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
        result = await self._jail.run(wanted.code, wanted.timeout_s)
        self.executions += 1
        if result.outcome is Outcome.SANDBOX_FAILURE:
            self.failures += 1
            log.error("the sandbox failed", detail=result.detail)
        return result
