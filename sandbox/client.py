"""The client of the execution service: one call, one deadline, retries for whatever is infrastructure's doing."""

import asyncio
import random

import nats.errors
from nats.aio.client import Client
from nats.micro.request import ERROR_HEADER

from bus.codec import MessageError, decode, encode
from bus.messages import Busy, ExecutionRequest, ExecutionResult, Outcome
from configs.schema import SandboxConfig
from sandbox.program import START_S, STOP_S, refusal

FIRST_DELAY_S = 0.02
LONGEST_DELAY_S = 2.0
ANSWER_MARGIN_S = START_S + 2 * STOP_S + 5.0
"""Beyond the program's own limit: starting and ending the jail, and the way of the answer."""


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
        once. Raises SandboxError past `request_timeout_s`, with the last reason.
        """
        refused = refusal(code, self._config)
        if refused is not None:
            return refused
        request = encode(ExecutionRequest(code=code, timeout_s=timeout_s))
        reason, delay = "no answer", FIRST_DELAY_S
        try:
            async with asyncio.timeout(self._config.request_timeout_s):
                while True:
                    answer = await self._ask(request, timeout_s + ANSWER_MARGIN_S)
                    if isinstance(answer, ExecutionResult):
                        return answer
                    reason = answer
                    # Jitter: many rollouts that were refused together do not come back together.
                    await asyncio.sleep(random.uniform(delay / 2, delay))
                    delay = min(delay * 2, LONGEST_DELAY_S)
        except TimeoutError:
            raise SandboxError(
                f"no sandbox on {self._subject} ran a program within {self._config.request_timeout_s:g} s "
                f"(last: {reason}): look at the log of `zerotir sandbox`, or start more of them"
            ) from None

    async def _ask(self, request: bytes, timeout_s: float) -> ExecutionResult | str:
        """One request: the result, or why there is none."""
        try:
            reply = await self._connection.request(self._subject, request, timeout=timeout_s)
        except nats.errors.NoRespondersError:
            return "no sandbox service is there"
        except nats.errors.Error as error:
            return f"{type(error).__name__}: {error}"
        if reply.headers and ERROR_HEADER in reply.headers:
            return f"the service answered: {reply.headers[ERROR_HEADER]}"
        try:
            answer = decode(reply.data, ExecutionResult, Busy)
        except MessageError as error:
            return f"unreadable answer: {error}"
        if not isinstance(answer, ExecutionResult):
            return "all services are busy"
        if answer.outcome is Outcome.SANDBOX_FAILURE:
            return f"the sandbox failed: {answer.detail}"
        return answer
