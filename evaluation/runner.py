"""The model's code without a bus: the pool of jails of this process, behind the protocol that the rollout takes."""

import asyncio

import structlog

from bus.messages import ExecutionResult, Outcome
from configs.schema import SandboxConfig
from sandbox.client import SandboxError
from sandbox.pool import Pool

log = structlog.get_logger()

RETRY_S = 1.0


class LocalRunner:
    """Runs programs in a pool's jails, at most `sandbox.concurrency` at once; the others wait for their turn."""

    def __init__(self, pool: Pool, config: SandboxConfig) -> None:
        self._pool = pool
        self._config = config
        self._slots = asyncio.Semaphore(config.concurrency)

    async def execute(self, code: str, timeout_s: float) -> ExecutionResult:
        """Runs `code` for at most `timeout_s` seconds; the result is never a SANDBOX_FAILURE.

        Failures are tried again. Raises SandboxError past `request_timeout_s`, its turn in the queue not counted.
        """
        async with self._slots:
            reason = "no answer"
            try:
                async with asyncio.timeout(self._config.request_timeout_s):
                    while True:
                        try:
                            result = await self._pool.run(code, timeout_s)
                        except OSError as error:
                            reason = f"{type(error).__name__}: {error}"
                        else:
                            if result.outcome is not Outcome.SANDBOX_FAILURE:
                                return result
                            reason = result.detail
                        log.warning("the sandbox failed, will try again", reason=reason)
                        await asyncio.sleep(RETRY_S)
            except TimeoutError:
                raise SandboxError(
                    f"the sandbox did not run a program within {self._config.request_timeout_s:g} s (last: {reason}): "
                    "`zerotir sandbox CONFIG --check` says what is wrong"
                ) from None
