"""Checks what the roles of a run must agree on, and what becomes of a field that changes on resume or in a replay.

A change that is accepted has its effect. All others are refused: what makes up a run cannot change in its life, and a field
without effect would let its user believe that it had one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

from configs.loading import ConfigError
from configs.schema import RunConfig

SHARED = ("model", "tasks", "rollout", "actor.engine.kind")
"""What every role must have as the run has it: tickets and results are made of it."""
SANDBOXED = ("rollout",)
"""What a sandbox must have; its host needs no reward function's source."""
FIXED = (
    *SHARED,
    "seed",
    "learner.trainer",
    "learner.batch_groups",
    "learner.group_size",
    "learner.max_staleness",
    "learner.algorithm.advantage",
    "learner.algorithm.minibatches",
    "learner.critic.minibatches",
    "learner.critic.frozen_policy_steps",
    "learner.deepspeed.zero_stage",
    "learner.deepspeed.offload_optimizer",
)
"""What a learner must have as well, and what cannot change in the life of a run: which tickets there are, which batch each
is in, and what a checkpoint holds: the learning rates' schedules count updates."""


class Effect(StrEnum):
    """Says what comes of another value of a field."""

    APPLIED = "applied"
    REFUSED = "refused"
    """It would be another run, or another set of results."""
    NONE = "refused: it would have no effect"


Occasion = Literal["resume", "replay"]
A, R, N = Effect.APPLIED, Effect.REFUSED, Effect.NONE
EFFECTS: dict[str, dict[Occasion, Effect]] = {
    field: {"resume": resume, "replay": replay}
    for field, resume, replay in (
        ("name", N, N),
        ("seed", R, A),
        ("model", R, A),
        ("tasks", R, N),
        ("rollout", R, N),
        ("bus", A, N),
        ("bus.url", N, N),
        ("bus.tls", N, N),
        ("bus.replicas", R, N),
        ("weights", A, N),
        ("sandbox", A, N),
        ("actor", A, N),
        ("actor.engine.kind", R, N),
        ("learner.steps", A, R),
        ("learner.batch_groups", R, R),
        ("learner.group_size", R, R),
        ("learner.max_staleness", R, R),
        ("learner.trainer", R, A),
        ("learner.algorithm", A, A),
        ("learner.algorithm.advantage", R, A),
        # The schedules count updates, and a checkpoint how many were made.
        ("learner.algorithm.minibatches", R, A),
        ("learner.critic", A, A),
        ("learner.critic.minibatches", R, A),
        ("learner.critic.frozen_policy_steps", R, A),
        ("learner.filters", A, A),
        ("learner.optimizer", A, A),
        ("learner.deepspeed", A, A),
        ("learner.deepspeed.zero_stage", R, A),
        ("learner.deepspeed.offload_optimizer", R, A),
        ("learner.checkpoint", A, N),
        ("learner.batch_timeout_s", A, N),
        ("learner.max_skipped_updates", A, A),
        ("learner.max_engine_gap", A, N),
        ("evaluation", A, N),
        ("launch", A, N),
        ("launch.runs_dir", N, N),
        ("alarms", A, N),
    )
}
"""What comes of a change, by field or section; where two fit, the more specific one applies."""


@dataclass(frozen=True)
class Change:
    """A field with another value than the run has."""

    field: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.field}: {self.before!r} -> {self.now!r}"


def effect(field: str, occasion: Occasion) -> Effect:
    """Returns what comes of another value of `field`. Raises KeyError where no rule says so."""
    return EFFECTS[max((name for name in EFFECTS if _within(field, name)), key=len, default="")][occasion]


def changes(recorded: RunConfig, config: RunConfig) -> list[Change]:
    """Returns the fields in which `config` differs from the run's own, in the schema's order."""
    return list(_changes("", recorded.model_dump(mode="json"), config.model_dump(mode="json")))


def require_same(recorded: RunConfig, config: RunConfig, fields: tuple[str, ...]) -> None:
    """Raises ConfigError, which names the first one, where `config` differs from the run's own in `fields`."""
    for change in changes(recorded, config):
        if any(_within(change.field, field) for field in fields):
            raise _fixed(change)


def require_effect(recorded: RunConfig, config: RunConfig, occasion: Occasion) -> list[Change]:
    """Returns what differs from the run's own configuration, all of which takes effect.

    Raises ConfigError, which names the first one, for a change that would not.
    """
    found = changes(recorded, config)
    for change in found:
        match effect(change.field, occasion), occasion:
            case Effect.NONE, _:
                where = "a run that goes on" if occasion == "resume" else "a replay, which takes the run's own results"
                raise ConfigError(f"{change.field} has no effect on {where}: leave it at {change.before!r}")
            case Effect.REFUSED, "resume":
                raise _fixed(change)
            case Effect.REFUSED, "replay":
                raise ConfigError(f"{change.field} decides which results a run has: a replay must leave it as it was")
    return found


def _fixed(change: Change) -> ConfigError:
    if change.field == "tasks.grading.reward_function_digest":
        return ConfigError(
            f"the source of the reward function here (digest {change.now}) is not the run's (digest {change.before}): "
            "put that one in its place, or start another run"
        )
    return ConfigError(
        f"{change.field} is {change.before!r} in this run and cannot be {change.now!r} in it: leave it as it was "
        "(the run's folder holds its config.yaml), or start another run"
    )


def _within(field: str, name: str) -> bool:
    return field == name or field.startswith(f"{name}.")


def _changes(prefix: str, before: dict[str, Any], now: dict[str, Any]) -> Iterator[Change]:
    for name in {**before, **now}:
        field = f"{prefix}{name}"
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _changes(f"{field}.", old, new)
        elif old != new:
            yield Change(field, old, new)
