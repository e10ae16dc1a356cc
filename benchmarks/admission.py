"""How full admission keeps an engine's cache, and what it costs in preemptions, against simpler rules.

    python -m benchmarks.admission [--responses 8000] [--capacity 1030000] [--limit 2048]

Time is simulated, by the scheduler of the emulated engine (`actors.emulated_scheduler`): no model, no clock, the same
numbers everywhere. Tickets wait all the time; a rule lets them in. Prompts have 50 to 400 tokens, responses log-normal
lengths up to `--longest`, and up to two programs that take the time of 10 to 300 tokens. Each way sees the same
rollouts. Takes ten minutes; prints a table and writes `benchmarks/results/admission.json`.
"""

import argparse
import heapq
import json
import math
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from datetime import date
from functools import partial
from pathlib import Path
from random import Random
from typing import Protocol

from actors.admission import Admission
from actors.emulated_scheduler import Request, Scheduler
from bus.messages import WeightVersion
from configs.schema import RolloutConfig

RESULTS = Path(__file__).parent / "results" / "admission.json"
PROMPT_LIMIT = 1024


class Rule(Protocol):
    """Decides how many rollouts begin."""

    def room(self, held: int) -> int: ...

    def running(self, prompt: int, response: Callable[[], int]) -> AbstractContextManager[object]: ...


class Fixed:
    """Lets in what fits if each had room for its prompt's limit and a length that `of_ended` takes from 256 recent ones."""

    def __init__(self, capacity: int, limit: int, of_ended: Callable[[list[int]], int]) -> None:
        self._capacity, self._limit, self._of_ended = capacity, limit, of_ended
        self._ended: deque[int] = deque(maxlen=256)

    def room(self, held: int) -> int:
        length = self._of_ended(sorted(self._ended))
        return max(0, min(self._limit, self._capacity // (PROMPT_LIMIT + length)) - held)

    def running(self, prompt: int, response: Callable[[], int]) -> ExitStack:
        stack = ExitStack()
        stack.callback(lambda: self._ended.append(response()))
        return stack


class Rollout:
    """A response of given length, in turns, with programs between them."""

    def __init__(self, number: int, length: int, random: Random) -> None:
        prompt = random.randrange(50, 400)
        self.tokens = [number] * prompt
        self.prompt = prompt
        calls = min(random.randrange(3), length - 1)
        cuts = sorted(random.sample(range(1, length), calls))
        self.turns = [end - start for start, end in zip([0, *cuts], [*cuts, length], strict=True)]
        self.waits = [random.uniform(10, 300) for _ in cuts]
        self.request: Request | None = None
        self.scope = ExitStack()


class Simulation:
    """A rule, a scheduler and their rollouts."""

    def __init__(self, rule: Rule, scheduler: Scheduler, rollouts: list[Rollout]) -> None:
        self._rule = rule
        self._scheduler = scheduler
        self._tickets = deque(rollouts)
        self._held = 0
        self._of_request: dict[Request, Rollout] = {}
        self._tools: list[tuple[float, int, Rollout]] = []
        self.at_first = 0
        """Rollouts let in at time 0."""
        self.occupied = self.sampling = self.time = 0.0
        """Integrals over the time in which tickets waited, and that time."""
        self.preemptions = self.prefilled = 0

    def run(self) -> None:
        """Runs until the last ticket is taken; what runs then is left."""
        scheduler = self._scheduler
        scheduler.load(WeightVersion(epoch=0, n=0))
        self._let_in()
        self.at_first = self._held
        while self._tickets:
            before, held, running = scheduler.time, scheduler.occupied, scheduler.running
            tool = self._tools[0][0] if self._tools else math.inf
            ended = scheduler.advance(min(scheduler.next_event, tool))
            took = scheduler.time - before
            self.time += took
            self.occupied += took * (held + scheduler.occupied) / 2
            self.sampling += took * running
            for request in ended:
                self._turn_ended(self._of_request.pop(request))
            while self._tools and self._tools[0][0] <= scheduler.time:
                self._ask(heapq.heappop(self._tools)[2])
            self._let_in()
        self.preemptions, self.prefilled = scheduler.preemptions, scheduler.prefilled_tokens

    def _let_in(self) -> None:
        for _ in range(min(self._rule.room(self._held), len(self._tickets))):
            rollout = self._tickets.popleft()
            self._held += 1
            rollout.scope.enter_context(self._rule.running(rollout.prompt, partial(self._length, rollout)))
            self._ask(rollout)

    def _ask(self, rollout: Rollout) -> None:
        request = rollout.request = Request(list(rollout.tokens), [0] * rollout.turns.pop(0))
        self._of_request[request] = rollout
        self._scheduler.ask(request)

    def _turn_ended(self, rollout: Rollout) -> None:
        assert rollout.request is not None
        rollout.tokens += rollout.request.written
        rollout.request = None
        if rollout.turns:
            heapq.heappush(self._tools, (self._scheduler.time + rollout.waits.pop(), id(rollout), rollout))
        else:
            rollout.scope.close()
            self._held -= 1

    def _length(self, rollout: Rollout) -> int:
        sampled = int(self._scheduler.sampled(rollout.request)) if rollout.request is not None else 0
        return len(rollout.tokens) - rollout.prompt + sampled


def lengths(median: float, spread: float, longest: int, count: int, seed: int) -> list[int]:
    """Returns log-normal lengths, cut at `longest`."""
    random = Random(seed)
    return [max(2, min(longest, round(random.lognormvariate(math.log(median), spread)))) for _ in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--responses", type=int, default=8000)
    parser.add_argument("--capacity", type=int, default=1_030_000, help="tokens of cache")
    parser.add_argument("--limit", type=int, default=2048, help="rollouts at once, whatever the cache holds")
    parser.add_argument("--longest", type=int, default=16_384, help="tokens of a response")
    arguments = parser.parse_args()
    capacity, limit, longest = arguments.capacity, arguments.limit, arguments.longest
    config = RolloutConfig(max_prompt_tokens=PROMPT_LIMIT, max_response_tokens=longest)
    ways: dict[str, Callable[[], Rule]] = {
        "room for the limit": lambda: Fixed(capacity, limit, lambda _: longest),
        "room for 19 of 20": lambda: Fixed(
            capacity, limit, lambda ended: ended[int(0.95 * len(ended))] if len(ended) >= 32 else longest
        ),
        "all at once": lambda: Fixed(10**12, limit, lambda _: longest),
        "foreseen": lambda: Admission(capacity, limit, config),
    }
    count = arguments.responses
    shapes = {
        "mean 1.4k": lengths(1017, 0.8, longest, count, 1),
        "mean 2.4k": lengths(1310, 1.1, longest, count, 2),
        "mean 4.3k": lengths(2750, 1.2, longest, count, 3),
        "all 4k": [4096] * count,
        "1k, then 4k": lengths(700, 0.8, longest, count // 2, 4) + lengths(2900, 0.8, longest, count // 2, 5),
    }
    rows = []
    for shape, drawn in shapes.items():
        for way, rule in ways.items():
            random = Random(0)
            rollouts = [Rollout(number, length, random) for number, length in enumerate(drawn)]
            simulation = Simulation(rule(), Scheduler(capacity, limit), rollouts)
            simulation.run()
            rows.append(
                {
                    "lengths": shape,
                    "mean": sum(drawn) / count,
                    "way": way,
                    "at_first": simulation.at_first,
                    "running": simulation.sampling / simulation.time,
                    "cache_use": simulation.occupied / simulation.time / capacity,
                    "preemptions_per_100": 100 * simulation.preemptions / count,
                    "prefilled_per_response": simulation.prefilled / count,
                    "time": simulation.time,
                }
            )
            print(rows[-1], flush=True)
    RESULTS.write_text(json.dumps({"date": str(date.today()), **vars(arguments), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
