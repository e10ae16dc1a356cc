"""The client of the execution service: one call, one deadline, retries for whatever is infrastructure's doing."""

import asyncio
import random

import nats.errors
from nats.aio.client import Client

from bus.codec import MessageError, decode, encode
from bus.messages import Busy, ExecutionRequest, ExecutionResult, Outcome
from configs.schema import SandboxConfig

FIRST_DELAY_S = 0.02
LONGEST_DELAY_S = 2.0
ANSWER_MARGIN_S = 10.0
"""Beyond the program's own limit: starting the jail and the way of the answer."""


class SandboxError(RuntimeError):
    """No sandbox ran the program before the deadline: infrastructure, never the model's doing."""


class SandboxClient:
    """Asks whichever sandbox service is free."""

    def __init__(self, connection: Client, subject: str, config: SandboxConfig) -> None:
        self._connection = connection
        self._subject = subject
        self._patience_s = config.request_timeout_s

    async def execute(self, code: str, timeout_s: float) -> ExecutionResult:
        """Runs `code`; the result is never a SANDBOX_FAILURE. Raises SandboxError past `request_timeout_s`."""
        request = encode(ExecutionRequest(code=code, timeout_s=timeout_s))
        reason, delay = "no answer", FIRST_DELAY_S
        try:
            async with asyncio.timeout(self._patience_s):
                while True:
                    try:
                        reply = await self._connection.request(
                            self._subject, request, timeout=timeout_s + ANSWER_MARGIN_S
                        )
                        answer = decode(reply.data, ExecutionResult, Busy)
                        if isinstance(answer, ExecutionResult) and answer.outcome is not Outcome.SANDBOX_FAILURE:
                            return answer
                        reason = "busy" if isinstance(answer, Busy) else answer.detail
                    except (nats.errors.Error, MessageError) as error:
                        reason = f"{type(error).__name__}: {error}"
                    # Full jitter: many rollouts that were refused together do not come back together.
                    await asyncio.sleep(random.uniform(delay / 2, delay))
                    delay = min(delay * 2, LONGEST_DELAY_S)
        except TimeoutError:
            raise SandboxError(
                f"no sandbox on {self._subject} ran a program within {self._patience_s:.0f} s (last: {reason}): "
                "is `zerotir sandbox` running?"
            ) from None
