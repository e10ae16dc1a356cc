"""A sandbox service as a process of its own: `python serve.py ADDRESS-AS-JSON CONFIG-AS-JSON`."""

import asyncio
import sys

from bus.address import BusAddress
from bus.connection import open_bus
from configs.bus import BusConfig
from configs.schema import SandboxConfig
from sandbox.jail import Jail
from sandbox.pool import Pool
from sandbox.service import SandboxService


async def serve(address: str, config: str) -> None:
    settings = SandboxConfig.model_validate_json(config)
    joined = BusAddress.model_validate_json(address)
    async with open_bus(joined, BusConfig(), "served") as bus, Pool(Jail(settings)) as pool:
        await SandboxService(bus.client, bus.names.execution, pool, settings, "served").start()
        await pool.filled()
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(*sys.argv[1:]))
