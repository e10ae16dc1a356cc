"""Every ticket ends, whatever the results are and wherever the learner is killed: the ledger over random histories."""

import copy
from dataclasses import dataclass, field
from random import Random

import hypothesis.strategies as st
from hypothesis import given, settings

from bus.messages import Trajectory
from learner.tickets.ledger import Ledger
from tests.factories import answer, failure, make_ledger

STEPS = 6


@dataclass
class World:
    """Streams, checkpoint and learner of a run; actors are the test's own moves."""

    random: Random
    groups: int
    samples: int
    staleness: int
    log: list[object] = field(default_factory=list)
    """The result stream; what cannot be used is None."""
    queue: set[int] = field(default_factory=set)
    """Both streams of tickets."""
    issued: int = 0
    version: int = 0
    trained: dict[int, tuple[int, ...]] = field(default_factory=dict)
    """The tickets that each step used up."""

    def __post_init__(self) -> None:
        self.ledger = self._fresh()
        self.saved = (copy.deepcopy(self.ledger.state()), 0)
        self._issue()

    def _fresh(self) -> Ledger:
        return make_ledger(self.groups, self.samples, self.staleness, STEPS)

    def _issue(self) -> None:
        self.ledger.admit(self.version)
        # As the stream's condition has it: a ticket is issued once.
        self.queue |= set(range(self.issued + 1, self.ledger.issued + 1))
        self.issued = max(self.issued, self.ledger.issued)

    def answer(self) -> None:
        if self.queue:
            ticket = self.random.choice(sorted(self.queue))
            self.queue.discard(ticket)
            failed = self.random.random() < 0.2
            self.log.append((failure if failed else answer)(self.ledger, ticket))

    def repeat(self) -> None:
        self.log += [self.random.choice(self.log)] if self.log else []

    def foreign(self) -> None:
        self.log.append(answer(self.ledger, self.ledger.issued + self.random.randint(1, 9) + 1000))

    def spoil(self) -> None:
        """A ticket is acknowledged, and what came of it cannot be used."""
        if self.queue:
            ticket = self.random.choice(sorted(self.queue))
            self.queue.discard(ticket)
            allowed = self.ledger.issued_under(self.ledger.group_of(ticket))
            stale = answer(self.ledger, ticket, version=allowed - 1) if allowed else None
            self.log.append(self.random.choice([None, stale]))

    def read(self) -> None:
        for _ in range(self.random.randint(1, 2 * self.groups * self.samples)):
            self._train()
            if self.ledger.position == len(self.log):
                break
            result = self.log[self.ledger.position]
            if result is None:
                self.ledger.position += 1
            else:
                self.ledger.accept(self.ledger.position + 1, result)  # type: ignore[arg-type]
        self._train()

    def _train(self) -> None:
        while self.version < STEPS and self.ledger.ready(self.version) is not None:
            batch = self.ledger.take(self.version)
            used = tuple(result.ticket for group in batch.taken for result in group)
            # A step that is trained again uses up the same results.
            assert self.trained.setdefault(self.version, used) == used
            for result in (result for group in batch.taken for result in group):
                assert not isinstance(result, Trajectory) or self.version - result.lowest_version <= self.staleness
            self.version += 1
            self._issue()

    def checkpoint(self) -> None:
        self.saved = (copy.deepcopy(self.ledger.state()), self.version)

    def kill(self) -> None:
        self.ledger = self._fresh()
        self.ledger.restore(copy.deepcopy(self.saved[0]))
        self.version = self.saved[1]
        self._issue()

    def look(self) -> None:
        """What `learner.tickets.lost` does."""
        if self.ledger.position == len(self.log):
            self.queue |= {ticket for ticket in self.ledger.unanswered() if ticket <= self.issued}


MOVES = ("answer", "answer", "answer", "read", "repeat", "foreign", "spoil", "checkpoint", "kill", "look")


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    shape=st.tuples(st.integers(1, 3), st.integers(2, 3), st.integers(0, 2)),
    moves=st.lists(st.sampled_from(MOVES), max_size=80),
)
def test_every_ticket_ends(seed: int, shape: tuple[int, int, int], moves: list[str]):
    world = World(Random(seed), *shape)
    for move in moves:
        getattr(world, move)()
    rounds = 0
    while world.version < STEPS:
        rounds += 1
        assert rounds < 1000, "the run never ends"
        for move in ("answer", "read", "look"):
            getattr(world, move)()
    balance = world.ledger.balance()
    assert balance["issued"] == STEPS * world.groups * world.samples
    assert balance["open"] == 0
    # Every ticket in one step, none in two.
    used = [ticket for step in range(STEPS) for ticket in world.trained[step]]
    assert sorted(used) == list(range(1, balance["issued"] + 1))
