"""Part of benchmarks/bus.py: a process of emulated actors, which write trajectories as fast as they are stored.

`python -m benchmarks.bus_actors WAY ADDRESS-AS-JSON REDIS-PORT SIZE ACTORS IN-FLIGHT`: each actor is a connection with that
many rollouts ending at once. Says `ready`, begins at the first line of its standard input, stops at the second and prints
how many it wrote.
"""

import asyncio
import contextlib
import sys

from benchmarks.bus_ways import Place, Writer, connected
from bus.address import BusAddress


async def main(way: str, address: str, port: str, size: str, actors: str, in_flight: str) -> None:
    place = Place(BusAddress.model_validate_json(address), int(port))
    written = 0
    stop = asyncio.Event()

    async def rollouts(writer: Writer) -> None:
        nonlocal written
        while not stop.is_set():
            await writer.write(written + 1)
            written += 1

    async with contextlib.AsyncExitStack() as stack:
        writers = [await stack.enter_async_context(connected(way, place, int(size))) for _ in range(int(actors))]
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.readline)
        tasks = [asyncio.create_task(rollouts(writer)) for writer in writers for _ in range(int(in_flight))]
        await asyncio.to_thread(sys.stdin.readline)
        stop.set()
        await asyncio.gather(*tasks)
    sys.stdout.write(f"{written}\n")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
