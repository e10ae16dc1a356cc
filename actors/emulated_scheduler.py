"""An engine's scheduler without a model: requests queue, run in a cache, are preempted, and leave their blocks behind.

It follows vLLM's rules. First come, first served; when the cache is full, the request that came last is preempted, goes back
to the head of the queue and is computed again; blocks of requests that ended are kept for requests that begin with the
same tokens, until others need their room. Two things are simpler: samples of one problem do not share their prompt's
room, and computing known tokens delays the request that has them alone.

Time is counted in tokens: one unit is the time in which a running request samples one. An event costs a pass over the
running requests.
"""

import math
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from bus.messages import WeightVersion

BLOCK = 16
"""Tokens of a block, vLLM's default on GPUs."""
PREFILL_SPEED = 100.0
"""Known tokens that are computed while one is sampled."""
ROUNDING = 1e-3
"""Tokens that count for none: sums of times are not exact."""


@dataclass(eq=False)
class Request:
    """A request to continue `tokens`, with what will be sampled for it."""

    tokens: list[int]
    written: list[int]
    versions: list[tuple[int, WeightVersion]] = field(default_factory=list)
    """Weight versions, each with the first token that is sampled under it."""
    running: bool = False
    sampled: float = 0.0
    """Tokens that were sampled when it last began to run."""
    begins: float = 0.0
    """When it last began to sample, or will."""
    ends: float = math.inf
    """When all is sampled, if it goes on running."""
    first_begin: float = math.inf
    """When it began to sample for the first time."""


class Scheduler:
    """Runs at most `max_running` requests in a cache of `capacity` tokens. Its time moves on by `advance` alone."""

    def __init__(self, capacity: int, max_running: int) -> None:
        self._capacity = capacity
        self._max_running = max_running
        self._version: WeightVersion | None = None
        self._queue: deque[Request] = deque()
        self._running: list[Request] = []
        """In the order in which they were let in."""
        self._starting: list[Request] = []
        """Those among them that do not sample yet."""
        self._idle: OrderedDict[int, None] = OrderedDict()
        """Blocks that no running request holds, each by a hash of all tokens up to its end; longest unused first."""
        self.time = 0.0
        self.occupied = 0.0
        """Tokens of running requests, prompts included."""
        self.preemptions = 0
        self.evicted_tokens = 0
        """Tokens of blocks that had to make room."""
        self.prefilled_tokens = 0
        """Known tokens that were computed: prompts, and what preemption and eviction had lost."""

    @property
    def running(self) -> int:
        """Returns the number of running requests."""
        return len(self._running)

    def sampled(self, request: Request, time: float | None = None) -> float:
        """Returns how many of a request's tokens are sampled by now, or by `time` if nothing happens until then."""
        since = max(0.0, (self.time if time is None else time) - request.begins) if request.running else 0.0
        return min(len(request.written), request.sampled + since)

    def ask(self, request: Request) -> None:
        """Puts a request at the end of the queue. Raises ValueError if the cache is too small for it alone."""
        if (length := len(request.tokens) + len(request.written)) > self._capacity:
            raise ValueError(f"a request of {length} tokens does not fit into a cache of {self._capacity}")
        self._queue.append(request)
        self._admit()

    def withdraw(self, request: Request) -> None:
        """Forgets a request that nobody waits for any more."""
        if request.running:
            self._stop(request)
        elif request in self._queue:
            self._queue.remove(request)
        self._admit()

    def load(self, version: WeightVersion) -> None:
        """Samples what follows under `version`; blocks of earlier versions are never used again."""
        self._version = version
        self._idle.clear()
        for request in self._running:
            request.versions.append((int(self.sampled(request)), version))

    @property
    def next_event(self) -> float:
        """Returns when the next request ends, begins to sample, or finds the cache full; infinity if nothing runs."""
        if not self._running:
            return math.inf
        ends = min(request.ends for request in self._running)
        begins = min((request.begins for request in self._starting), default=math.inf)
        sampling = len(self._running) - len(self._starting)
        full = self.time + (self._capacity - self.occupied) / sampling if sampling else math.inf
        return max(self.time, min(ends, begins, full))

    def advance(self, time: float) -> list[Request]:
        """Moves on to `time`; returns the requests that ended on the way, in their order."""
        ended: list[Request] = []
        while (event := self.next_event) <= time:
            self._pass(event)
            for request in [each for each in self._running if each.ends <= self.time + ROUNDING]:
                self._stop(request)
                ended.append(request)
            while self._running and self._capacity - self.occupied <= ROUNDING:
                self._preempt()
            self._admit()
        self._pass(time)
        return ended

    def _pass(self, time: float) -> None:
        """Lets time pass in which nothing happens before `time`."""
        self.occupied += (time - self.time) * (len(self._running) - len(self._starting))
        self.time = time
        self._starting = [request for request in self._starting if request.begins > time]
        self._make_room()

    def _preempt(self) -> None:
        last = self._running[-1]
        self._stop(last)
        self._queue.appendleft(last)
        self.preemptions += 1

    def _stop(self, request: Request) -> None:
        """Takes a request out of the running ones. Its blocks stay, if all are of the current version."""
        request.sampled = self.sampled(request)
        if request.ends <= self.time + ROUNDING:
            request.sampled = len(request.written)
        request.running = False
        self._running.remove(request)
        if request in self._starting:
            self._starting.remove(request)
        self.occupied = self.occupied - len(request.tokens) - request.sampled if self._running else 0.0
        if len(request.versions) == 1 and request.versions[0][1] == self._version:
            # The last blocks are evicted first: they are of no use without those before them.
            for key in reversed(list(self._keys(request))):
                self._idle[key] = None
                self._idle.move_to_end(key)

    def _admit(self) -> None:
        """Lets requests in from the head of the queue, while there is room for them."""
        while self._queue and len(self._running) < self._max_running:
            request = self._queue[0]
            tokens = len(request.tokens) + request.sampled
            # With a block for each that runs, or the next tokens would preempt this one again.
            if self._running and self.occupied + tokens + BLOCK * (len(self._running) + 1) > self._capacity:
                break
            self._queue.popleft()
            to_compute = tokens - BLOCK * self._reuse(request)
            self.prefilled_tokens += int(to_compute)
            request.begins = self.time + to_compute / PREFILL_SPEED
            request.ends = request.begins + len(request.written) - request.sampled
            request.first_begin = min(request.first_begin, request.begins)
            if self._version is not None and (not request.versions or request.versions[-1][1] != self._version):
                request.versions.append((int(request.sampled), self._version))
            request.running = True
            self._running.append(request)
            self._starting.append(request)
            self.occupied += tokens
        self._make_room()

    def _reuse(self, request: Request) -> int:
        """Takes the idle blocks that a request begins with; returns how many."""
        count = 0
        for key in self._keys(request):
            if key not in self._idle:
                break
            del self._idle[key]
            count += 1
        return count

    def _make_room(self) -> None:
        """Evicts idle blocks, the longest unused first, until all fit beside the running requests."""
        while len(self._idle) * BLOCK + self.occupied > self._capacity and self._idle:
            self._idle.popitem(last=False)
            self.evicted_tokens += BLOCK

    @staticmethod
    def _keys(request: Request) -> Iterator[int]:
        """Yields the keys of the full blocks that are computed when a request runs, from its beginning on."""
        tokens = [*request.tokens, *request.written[: int(request.sampled)]]
        key = 0
        for start in range(0, len(tokens) - BLOCK + 1, BLOCK):
            key = hash((key, *tokens[start : start + BLOCK]))
            yield key
