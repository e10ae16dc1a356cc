"""For every field it is known what comes of another value on resume and in a replay: an effect, or a refusal."""

from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from configs.agreement import (
    EFFECTS,
    FIXED,
    SANDBOXED,
    SHARED,
    Effect,
    changes,
    effect,
    require_effect,
    require_same,
)
from configs.loading import ConfigError, load_config
from configs.schema import RunConfig


def fields(section: type[BaseModel] = RunConfig, path: str = "") -> Iterator[str]:
    """Every field that holds a value."""
    for name, field in section.model_fields.items():
        where = f"{path}.{name}" if path else name
        kind: Any = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from fields(kind, where)
        else:
            yield where


FIELDS = list(fields())


def test_every_field_has_a_rule_and_every_rule_a_field():
    assert len(FIELDS) > 100
    for field in FIELDS:
        effect(field, "resume")
    for rule in EFFECTS:
        assert any(field == rule or field.startswith(f"{rule}.") for field in FIELDS), rule
    with pytest.raises(KeyError):
        effect("learner.unheard_of", "resume")


def test_what_makes_up_a_run_is_refused_on_resume():
    assert {field for field in FIELDS if effect(field, "resume") is Effect.REFUSED} == {
        field for field in FIELDS if any(field == name or field.startswith(f"{name}.") for name in FIXED)
    } | {"bus.replicas"}


@pytest.mark.parametrize(
    ("override", "resume", "replay"),
    [
        ("learner.optimizer.lr=1e-6", None, None),
        ("learner.critic.optimizer.eps=1e-6", None, None),
        ("learner.filters.overlong=true", None, None),
        ("learner.steps=9", None, "decides which results"),
        ("learner.algorithm.minibatches=4", "cannot be 4 in it", None),
        ("learner.group_size=8", "cannot be 8 in it", "decides which results"),
        ("learner.algorithm.advantage=grpo", "cannot be 'grpo'", None),
        ("rollout.temperature=2", "cannot be 2.0", "no effect on a replay.*leave it at 1.0"),
        ("seed=5", "cannot be 5", None),
        ("actor.max_rollouts=3", None, "no effect on a replay"),
        ("learner.checkpoint.every=3", None, "no effect on a replay"),
        ("name=other", "no effect on a run that goes on: leave it at 'tiny'", "no effect on a replay"),
        ("bus.url=nats://a:4222", "no effect on a run that goes on: leave it at None", "no effect on a replay"),
        ("bus.port=4222", None, "no effect on a replay"),
        ("bus.timeout_s=9", None, "no effect on a replay"),
        ("launch.runs_dir=elsewhere", "no effect on a run that goes on", "no effect on a replay"),
        ("launch.actors=2", None, "no effect on a replay"),
    ],
)
def test_a_change_has_its_effect_or_is_refused(override: str, resume: str | None, replay: str | None):
    base, other = load_config("tiny"), load_config("tiny", [override])
    field = override.partition("=")[0]
    for occasion, refusal in (("resume", resume), ("replay", replay)):
        if refusal is None:
            [change] = require_effect(base, other, occasion)  # type: ignore[arg-type]
            assert change.field == field
        else:
            with pytest.raises(ConfigError, match=rf"^{field} .*{refusal}"):
                require_effect(base, other, occasion)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("override", "shared", "fixed"),
    [
        ("learner.steps=9", True, True),
        ("actor.max_rollouts=3", True, True),
        ("learner.group_size=8", True, False),
        ("learner.algorithm.advantage=gae", True, False),
        ("seed=5", True, False),
        ("rollout.temperature=0.9", False, False),
        ("actor.engine.kind=emulated", False, False),
    ],
)
def test_what_roles_must_agree_on(override: str, shared: bool, fixed: bool):
    base, other = load_config("tiny"), load_config("tiny", [override])
    field = override.partition("=")[0]
    [change] = changes(base, other)
    assert change.field == field
    for names, allowed in ((SHARED, shared), (FIXED, fixed)):
        if allowed:
            require_same(base, other, names)
        else:
            with pytest.raises(ConfigError, match=f"^{field} is .* in this run and cannot be"):
                require_same(base, other, names)


def test_the_source_of_a_reward_function_cannot_change_and_a_sandbox_needs_none():
    name = "tasks.grading.reward_function"
    settings = [
        [f"{name}=rewards.py:reward", *(f"{name}_digest='{digest}'" for digest in digests)] for digests in ("ab", "")
    ]
    run, here = (load_config("tiny", each) for each in settings)
    with pytest.raises(
        ConfigError, match=r"source of the reward function here \(digest None\) is not the run's \(digest b\)"
    ):
        require_same(run, here, SHARED)
    with pytest.raises(ConfigError, match="source of the reward function"):
        require_effect(run, here, "resume")
    require_same(run, here, SANDBOXED)
    with pytest.raises(ConfigError, match=r"rollout\.max_tool_calls is 2 in this run"):
        require_same(run, load_config("tiny", ["rollout.max_tool_calls=3"]), SANDBOXED)
