"""Checks what the roles of a run must agree on, and what of a run may change while it is stopped."""

from dataclasses import dataclass
from typing import Any

from configs.loading import ConfigError
from configs.schema import RunConfig

SHARED = ("model", "tasks", "rollout", "actor.engine.kind")
"""What every role must have as the run has it: tickets and results are made of it."""
FIXED = (
    *SHARED,
    "seed",
    "learner.trainer",
    "learner.batch_groups",
    "learner.group_size",
    "learner.max_staleness",
    "learner.algorithm.advantage",
    "learner.deepspeed.zero_stage",
    "learner.deepspeed.offload_optimizer",
)
"""What a learner must have as well, and what cannot change in the life of a run: which tickets there are, which batch each
is in, and what a checkpoint holds."""


@dataclass(frozen=True)
class Change:
    """A field with another value than the run has."""

    field: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.field}: {self.before!r} -> {self.now!r}"


def changes(recorded: RunConfig, config: RunConfig) -> list[Change]:
    """Returns the fields in which `config` differs from the run's own, in the schema's order."""
    return list(_changes("", recorded.model_dump(mode="json"), config.model_dump(mode="json")))


def require_same(recorded: RunConfig, config: RunConfig, fields: tuple[str, ...]) -> None:
    """Raises ConfigError, which names the first one, where `config` differs from the run's own in `fields`."""
    for change in changes(recorded, config):
        if any(change.field == field or change.field.startswith(f"{field}.") for field in fields):
            raise ConfigError(
                f"{change.field} is {change.before!r} in this run and cannot be {change.now!r} in it: leave it as it was "
                "(the run's folder holds its config.yaml), or start another run"
            )


def _changes(prefix: str, before: dict[str, Any], now: dict[str, Any]) -> Any:
    for name in {**before, **now}:
        field = f"{prefix}{name}"
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _changes(f"{field}.", old, new)
        elif old != new:
            yield Change(field, old, new)
