"""The ledger of tickets: a deterministic state machine over the result log.

Nothing here reads a clock or the bus: what is accepted, which groups make a batch and why a ticket ended follow from the
order of the results alone, so a learner that reads the same log again comes to the same batches.

Terms: G groups of K tickets make a batch; batch v trains weight version v into v + 1; S is `max_staleness`. Group g
holds the tickets g·K + 1 ... g·K + K and is *settled* once each has a result. Admission: once version v is current,
groups up to (v + 1 + S)·G are issued, so group g is issued under max(0, ⌊g / G⌋ − S) and must be trained, or ended
otherwise, by batch ⌊g / G⌋ at the latest (max(⌊g / G⌋, S) for the first ones) to keep staleness within S.

Batch v is the G lowest-numbered settled groups, taken as soon as doing so leaves every later one able to keep
its groups' deadlines: for every u > v the groups left with a deadline of at most u must fit into the batches v + 1 ... u.
Waiting only for the groups whose own deadline is v would not do: a batch that takes young groups past slow old ones can
leave more old groups than the next batch holds.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Self

import xxhash

from bus.codec import MessageError, decode, encode
from bus.messages import Failure, Trajectory
from configs.schema import LearnerConfig
from learner.tickets.filters import Filters

Result = Trajectory | Failure


class BalanceError(RuntimeError):
    """Tickets do not add up: issued is not trained + filtered + failed + open."""


@dataclass(frozen=True)
class Batch:
    """Says what one step takes out of the ledger."""

    version: int
    """The weights that the step trains from."""
    trained: tuple[tuple[Trajectory, ...], ...]
    """What is trained on of each group, in order of their numbers; groups of which nothing is are left out."""
    taken: tuple[tuple[Result, ...], ...]
    """All groups that the step used up, filtered ones and failures included."""
    filtered: dict[str, tuple[Trajectory, ...]]
    """Trajectories left out, by reason."""

    @property
    def step(self) -> int:
        """Returns the number of the step, counted from 1: the version that it makes."""
        return self.version + 1

    @property
    def digest(self) -> str:
        """Tells which results the step used up: equal for equal batches."""
        names = "\n".join(
            f"{result.ticket} {result.actor} {result.published_at}" for group in self.taken for result in group
        )
        return xxhash.xxh3_64_hexdigest(names.encode())


@dataclass
class Ledger:
    """Holds every open ticket. `groups_per_batch` is G, `group_size` K, `max_staleness` S; `steps` bounds what is issued."""

    groups_per_batch: int
    group_size: int
    max_staleness: int
    steps: int
    filters: Filters
    position: int = 0
    """Sequence of the last result that was read."""
    issued_groups: int = 0
    trained: int = 0
    filtered: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    ignored: Counter[str] = field(default_factory=Counter)
    """Results that changed nothing, by reason."""
    _open: dict[int, dict[int, Result]] = field(default_factory=dict)
    """Groups that are issued and not taken: ticket to result."""

    @classmethod
    def of(cls, learner: LearnerConfig) -> Self:
        """Returns the ledger at the beginning of a run with this configuration."""
        filters = Filters(learner.filters, learner.algorithm.group_relative)
        return cls(learner.batch_groups, learner.group_size, learner.max_staleness, learner.steps, filters)

    def admit(self, version: int) -> range:
        """Issues what the current version allows; returns the new groups' numbers."""
        limit = min((version + 1 + self.max_staleness), self.steps) * self.groups_per_batch
        new = range(self.issued_groups, max(limit, self.issued_groups))
        self._open.update({group: {} for group in new})
        self.issued_groups = new.stop
        return new

    def issued_under(self, group: int) -> int:
        """Returns the version that was current when `group` was issued."""
        return max(0, group // self.groups_per_batch - self.max_staleness)

    def deadline(self, group: int) -> int:
        """Returns the last version from which `group` may be trained on."""
        return self.issued_under(group) + self.max_staleness

    def tickets(self, group: int) -> range:
        """Returns the numbers of a group's tickets."""
        return range(group * self.group_size + 1, (group + 1) * self.group_size + 1)

    def accept(self, sequence: int, result: Result) -> str | None:
        """Takes the next result of the log; returns why it was ignored, or None if it counts."""
        self.position = sequence
        reason = self._refusal(result)
        if reason is not None:
            self.ignored[reason] += 1
            return reason
        self._open[result.group][result.ticket] = result
        return None

    def _refusal(self, result: Result) -> str | None:
        if result.ticket not in self.tickets(result.group):
            return "ticket of another group"
        if result.group >= self.issued_groups:
            return "never issued"
        if result.group not in self._open:
            return "group already used"
        if result.ticket in self._open[result.group]:
            return "already answered"
        if isinstance(result, Trajectory) and result.lowest_version < self.issued_under(result.group):
            return "weights older than the ticket allows"
        return None

    def _settled(self) -> list[int]:
        return sorted(group for group, results in self._open.items() if len(results) == self.group_size)

    def ready(self, version: int) -> list[int] | None:
        """Returns the groups that are trained on from `version`, or None while their batch must wait."""
        chosen = self._settled()[: self.groups_per_batch]
        if len(chosen) < self.groups_per_batch:
            return None
        left = sorted(set(self._open) - set(chosen))
        for count, group in enumerate(left, start=1):
            if count > (self.deadline(group) - version) * self.groups_per_batch:
                return None
        return chosen

    def take(self, version: int) -> Batch:
        """Takes the batch that is trained on from `version`; only after `ready` named one."""
        chosen = self.ready(version)
        if chosen is None:
            raise ValueError(f"the batch of version {version} is not ready")
        trained: list[tuple[Trajectory, ...]] = []
        taken: list[tuple[Result, ...]] = []
        filtered: dict[str, tuple[Trajectory, ...]] = {}
        for group in chosen:
            results = [self._open[group][ticket] for ticket in self.tickets(group)]
            del self._open[group]
            taken.append(tuple(results))
            self.failed.update(result.reason for result in results if isinstance(result, Failure))
            members = tuple(result for result in results if isinstance(result, Trajectory))
            kept, dropped = self.filters.apply(members)
            for reason, left_out in dropped.items():
                filtered[reason] = filtered.get(reason, ()) + left_out
                self.filtered[reason] += len(left_out)
            if kept:
                trained.append(kept)
        self.trained += sum(len(members) for members in trained)
        return Batch(version, tuple(trained), tuple(taken), filtered)

    @property
    def issued(self) -> int:
        """Returns the number of tickets issued so far."""
        return self.issued_groups * self.group_size

    @property
    def open(self) -> int:
        """Returns the number of tickets that have not ended: they have no result, or wait for their group or batch."""
        return len(self._open) * self.group_size

    def unanswered(self) -> list[int]:
        """Returns the numbers of the open tickets without a result, in order."""
        return [
            ticket for group in sorted(self._open) for ticket in self.tickets(group) if ticket not in self._open[group]
        ]

    def group_of(self, ticket: int) -> int:
        """Returns the group that a ticket belongs to."""
        return (ticket - 1) // self.group_size

    @property
    def waiting(self) -> int:
        """Returns the number of results that wait for their group or batch."""
        return sum(len(results) for results in self._open.values())

    def balance(self) -> dict[str, int]:
        """Returns the numbers of tickets by their end. Raises BalanceError when they do not add up."""
        filtered, failed = self.filtered.total(), self.failed.total()
        if self.issued != self.trained + filtered + failed + self.open:
            raise BalanceError(
                f"{self.issued} tickets issued, but {self.trained} trained, {filtered} filtered, {failed} failed and "
                f"{self.open} open"
            )
        return {
            "issued": self.issued,
            "trained": self.trained,
            "filtered": filtered,
            "failed": failed,
            "open": self.open,
            "ignored": self.ignored.total(),
        }

    def progress(self) -> tuple[int, int]:
        """Returns how many results are there for the next batch's lowest-numbered groups, and how many it needs."""
        lowest = sorted(self._open)[: self.groups_per_batch]
        return sum(len(self._open[group]) for group in lowest), self.groups_per_batch * self.group_size

    def state(self) -> dict[str, Any]:
        """Returns everything that a checkpoint must hold, as msgpack takes it."""
        return {
            "position": self.position,
            "issued_groups": self.issued_groups,
            "trained": self.trained,
            "filtered": dict(self.filtered),
            "failed": dict(self.failed),
            "ignored": dict(self.ignored),
            "open": {group: [encode(result) for result in self._results(group)] for group in sorted(self._open)},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Takes over what `state` returned. Raises MessageError where a stored result is damaged."""
        self.position = state["position"]
        self.issued_groups = state["issued_groups"]
        self.trained = state["trained"]
        self.filtered = Counter(state["filtered"])
        self.failed = Counter(state["failed"])
        self.ignored = Counter(state["ignored"])
        self._open = {}
        for group, packed in state["open"].items():
            results = [decode(data, Trajectory, Failure) for data in packed]
            if any(result.group != group for result in results):
                raise MessageError(f"group {group} of the checkpoint holds results of another one")
            self._open[group] = {result.ticket: result for result in results}

    def _results(self, group: int) -> Iterator[Result]:
        results = self._open[group]
        return (results[ticket] for ticket in sorted(results))
