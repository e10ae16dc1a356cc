"""The client of the execution service: one call, one deadline, retries for whatever is infrastructure's doing."""

import asyncio
import secrets

import nats.errors
import structlog
from nats.aio.client import Client
from nats.micro.request import ERROR_CODE_HEADER, ERROR_HEADER
from pydantic import BaseModel, ConfigDict, ValidationError

from bus.codec import MessageError, decode, encode
from bus.messages import Busy, CancelExecution, Count, ExecutionRequest, ExecutionResult, Outcome, Seconds
from configs.names import Name
from configs.schema import SandboxConfig
from runtime.retry import Backoff
from sandbox.program import QUEUE_S, SERVICE_NAME, START_S, STOP_S, cancel_subject, refusal

log = structlog.get_logger()

FIRST_DELAY_S = 0.02
LONGEST_DELAY_S = 2.0
ANSWER_MARGIN_S = QUEUE_S + START_S + 2 * STOP_S + 5.0
"""Seconds beyond the program's own limit: waiting for, starting and ending a jail, and the way of the answer."""
DISCOVERY_S = 0.5
"""Seconds within which services answer a question for their statistics."""


class SandboxError(RuntimeError):
    """No sandbox ran the program before the deadline: infrastructure, never the model's doing."""


class SandboxClient:
    """Asks whichever sandbox service is free; any number of calls may overlap."""

    def __init__(self, connection: Client, subject: str, config: SandboxConfig) -> None:
        self._connection = connection
        self._subject = subject
        self._config = config

    async def execute(self, code: str, timeout_s: float) -> ExecutionResult:
        """Runs `code` for at most `timeout_s` seconds; the result is never a SANDBOX_FAILURE.

        Busy services, missing ones, lost answers and failing sandboxes are tried again, so a program may run more than
        once. Raises SandboxError past `request_timeout_s`, with the last reason. A call that is given up ends its program.
        """
        refused = refusal(code, self._config)
        if refused is not None:
            return refused
        reason = "no answer"
        backoff = Backoff(self._config.request_timeout_s, FIRST_DELAY_S, LONGEST_DELAY_S)
        try:
            async with asyncio.timeout(backoff.patience_s):
                while True:
                    answer = await self._ask(code, timeout_s)
                    if isinstance(answer, ExecutionResult):
                        return answer
                    reason = answer
                    await backoff.pause()
        except TimeoutError:
            raise SandboxError(
                f"no sandbox on {self._subject} ran a program within {self._config.request_timeout_s:g} s "
                f"(last: {reason}): look at the log of `zerotir sandbox`, or start more of them"
            ) from None

    async def _ask(self, code: str, timeout_s: float) -> ExecutionResult | str:
        """Sends one request; returns the result, or why there is none."""
        id = secrets.token_hex(8)
        request = encode(ExecutionRequest(id=id, code=code, timeout_s=timeout_s))
        try:
            reply = await self._connection.request(self._subject, request, timeout=timeout_s + ANSWER_MARGIN_S)
        except nats.errors.NoRespondersError:
            return "no sandbox service is there"
        except nats.errors.TimeoutError as error:
            await self._cancel(id)
            return f"{type(error).__name__}: {error}"
        except nats.errors.Error as error:
            return f"{type(error).__name__}: {error}"
        except asyncio.CancelledError:
            await self._cancel(id)
            raise
        if reply.headers and ERROR_HEADER in reply.headers:
            reason = f"the service answered: {reply.headers[ERROR_HEADER]}"
            if reply.headers.get(ERROR_CODE_HEADER) == "400":
                raise SandboxError(f"{reason}: actor and sandbox are of different versions")
            return reason
        try:
            answer = decode(reply.data, ExecutionResult, Busy)
        except MessageError as error:
            return f"unreadable answer: {error}"
        if not isinstance(answer, ExecutionResult):
            return "all services are busy"
        if answer.outcome is Outcome.SANDBOX_FAILURE:
            return f"the sandbox failed: {answer.detail}"
        return answer

    async def _cancel(self, id: str) -> None:
        try:
            await self._connection.publish(cancel_subject(self._subject), encode(CancelExecution(id=id)))
        except nats.errors.Error as error:
            log.warning("an execution could not be cancelled; it ends at its limit", error=str(error))


class ServiceStatistics(BaseModel):
    """What a sandbox service says of itself, see `SandboxService`."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)
    name: Name
    slots: Count
    in_flight: Count
    executions: Count
    failures: Count
    refused: Count
    cancelled: Count
    busy_seconds: Seconds
    idle_jails: Count
    idle_jails_with_packages: Count


class _Endpoint(BaseModel):
    subject: str
    data: ServiceStatistics


class _Answer(BaseModel):
    """Of NATS' service protocol, what is read here."""

    id: str
    endpoints: list[_Endpoint] = []


async def statistics(connection: Client, subject: str) -> list[ServiceStatistics]:
    """Returns what every sandbox service on `subject` says of itself, by name.

    Asks by NATS' service protocol and takes the answers that come within `DISCOVERY_S` seconds and are what they should be.
    """
    inbox = connection.new_inbox()
    subscription = await connection.subscribe(inbox)
    found: list[ServiceStatistics] = []
    try:
        await connection.publish(f"$SRV.STATS.{SERVICE_NAME}", b"", reply=inbox)
        async with asyncio.timeout(DISCOVERY_S):
            async for message in subscription.messages:
                if not message.data:
                    # Nobody is there.
                    continue
                try:
                    answer = _Answer.model_validate_json(message.data)
                except ValidationError as error:
                    log.warning("a sandbox's statistics cannot be read", error=error.errors()[0]["msg"][:200])
                    continue
                found += [endpoint.data for endpoint in answer.endpoints if endpoint.subject == subject]
    except TimeoutError:
        return sorted(found, key=lambda service: service.name)
    finally:
        await subscription.unsubscribe()
    return found
