"""The execution service: a NATS micro service over the jail; any number of them share the work as one queue group.

At most `sandbox.concurrency` programs run at once. When all places are taken the answer is `Busy` at once: the client tries
again, perhaps elsewhere. A failure of the sandbox is answered as such, for the client to retry, never as program output.
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
from sandbox.jail import Jail

log = structlog.get_logger()


class SandboxService:
    """Answers execution requests on one subject."""

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
        """Begins to take requests."""
        self._service = await add_service(
            self._connection, name="zerotir-sandbox", version="1.0.0", description="runs model-written code in nsjail"
        )
        await self._service.add_endpoint(name="execute", subject=self._subject, handler=self._handle)

    async def drain(self, grace_s: float) -> None:
        """Takes no more requests; lets programs finish for `grace_s` seconds and cancels the rest."""
        if self._service is not None:
            await self._service.stop()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace_s)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _handle(self, request: Request) -> None:
        try:
            wanted = decode(request.data, ExecutionRequest)
        except MessageError as error:
            await request.respond_error("400", str(error)[:200])
            return
        if len(self._tasks) >= self._config.concurrency:
            await request.respond(encode(Busy()))
            return
        task = asyncio.create_task(self._serve(request, wanted))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, request: Request, wanted: ExecutionRequest) -> None:
        started = time.monotonic()
        answer: Message = await self._execute(wanted)
        self.busy_seconds += time.monotonic() - started
        try:
            await request.respond(encode(answer))
        except nats.errors.Error as error:
            log.warning("an answer could not be sent; the client will ask again", error=str(error))

    async def _execute(self, wanted: ExecutionRequest) -> ExecutionResult:
        size = len(wanted.code.encode(errors="replace"))
        if size > self._config.max_code_bytes:
            line = f"SyntaxError: the program has {size} bytes, more than {self._config.max_code_bytes}"
            return ExecutionResult(
                outcome=Outcome.EXITED, exit_code=1, signal=None, stdout="", stderr=line, truncated=False, seconds=0.0
            )
        result = await self._jail.run(wanted.code, wanted.timeout_s)
        self.executions += 1
        if result.outcome is Outcome.SANDBOX_FAILURE:
            self.failures += 1
            log.error("the sandbox failed", detail=result.detail)
        return result
