"""`make chaos ROUNDS=100 SEED=1`: one run after another, each through a schedule of faults drawn from its seed."""

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path
from random import Random

from tests.chaos.faults import ALL
from tests.chaos.run import Fault, play


def draw(seed: int, faults: int) -> list[Fault]:
    """A schedule of `faults` faults; the same seed gives the same one."""
    return Random(f"schedule {seed}").choices(ALL, k=faults)


def main() -> None:
    """Ends with 1 at the first round that loses something; its seed repeats it, its folder is kept."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--faults", type=int, default=4)
    arguments = parser.parse_args()
    for seed in range(arguments.seed, arguments.seed + arguments.rounds):
        schedule = draw(seed, arguments.faults)
        print(f"round with seed {seed}: {', '.join(fault.__name__ for fault in schedule)}", flush=True)
        home = Path(tempfile.mkdtemp(prefix=f"chaos-{seed}-"))
        started = time.monotonic()
        try:
            asyncio.run(play(home, schedule, seed, steps=12 * (arguments.faults + 1)))
        except (AssertionError, TimeoutError, OSError) as error:
            print(f"round with seed {seed} FAILED, see {home}: {type(error).__name__}: {error}", flush=True)
            sys.exit(1)
        print(f"round with seed {seed}: nothing lost, {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
