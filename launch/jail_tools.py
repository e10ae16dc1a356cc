"""`zerotir sandbox --check` and `--run FILE`: the jail by hand, without a bus."""

import json
import sys
from pathlib import Path

from bus.messages import Outcome
from configs.errors import UserError
from configs.schema import RunConfig
from sandbox.check import check
from sandbox.jail import Jail


async def check_isolation(config: RunConfig) -> None:
    """Prints what is in force. Raises SandboxUnavailable where something that is asked for is missing."""
    sys.stdout.write(await check(Jail(config.sandbox)) + "\n")


async def run_program(config: RunConfig, path: Path) -> None:
    """Runs the program in `path` as the configuration has it and prints one JSON object.

    Exits with 1 where the sandbox failed under it. Raises UserError where there is no such file or no sandbox.
    """
    try:
        # What is not UTF-8 stays visible as such and is refused as the program's own fault.
        code = path.read_bytes().decode(errors="surrogateescape")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    result = await Jail(config.sandbox).run(code, config.rollout.tool_timeout_s)
    fields = ("outcome", "exit_code", "signal", "stdout", "stderr", "truncated", "seconds")
    sys.stdout.write(json.dumps(result.model_dump(mode="json", include=set(fields))) + "\n")
    if result.outcome is Outcome.SANDBOX_FAILURE:
        sys.stderr.write(f"zerotir: {result.detail}\n")
        sys.exit(1)
