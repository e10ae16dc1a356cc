"""Engines are held against the trainer's own log-probabilities before a step changes the policy."""

import pytest

from bus.messages import WeightVersion
from configs.schema import LearnerConfig, ModelConfig, RunConfig
from configs.tasks import ProblemsConfig, TasksConfig
from configs.training import OptimizerConfig
from learner.training.engine_gap import EngineGapError
from learner.training.rank_trainer import RankTrainer
from tests.factories import random_batch
from tests.integration.plain import (
    behave_like,
    difference,
    weights,
)

pytestmark = pytest.mark.usefixtures("process_group")
SAME = frozenset({WeightVersion(epoch=0, n=0)})

"""The version that random trajectories are of."""


@pytest.mark.parametrize(
    "algorithm",
    [{}, {"minibatches": 3}, {"minibatches": 3, "loss": "ppo"}, {"advantage": "vtrace"}],
    ids=["one minibatch", "three", "ppo", "vtrace"],
)
def test_engines_are_held_against_the_policy_before_it_changes(new_trainer, algorithm):
    """In float32. Large steps: a comparison with weights of later minibatches would find a gap."""
    trainer = new_trainer(OptimizerConfig(lr=1e-2), **algorithm)
    groups = [behave_like(trainer.policy, group) for seed in range(4) for group in random_batch(seed)]
    assert trainer.train(groups, 0, SAME)["engine_gap"] < 1e-5
    # The same trajectories are stale by now: nothing is known of their engines.
    before = weights(trainer)
    assert "engine_gap" not in trainer.train(groups, 1)
    assert any(change.abs().max() > 0 for change in difference(weights(trainer), before).values())
    before = weights(trainer)
    with pytest.raises(EngineGapError, match=r"disagree on version 0\.0: .*; they last agreed at version 0\.0"):
        trainer.train(groups, 0, SAME)
    assert all(change.abs().max() == 0 for change in difference(weights(trainer), before).values())


def test_engines_are_held_against_a_policy_that_only_its_critic_trains_on(folder):
    learner = {"algorithm": {"advantage": "gae"}, "critic": {"frozen_policy_steps": 2}, "steps": 5}
    config = RunConfig(
        name="test",
        model=ModelConfig(path="random-tiny", dtype="float32"),
        tasks=TasksConfig(problems=ProblemsConfig(recipe="products")),
        learner=LearnerConfig.model_validate(learner),
    )
    trainer = RankTrainer(config, folder)
    groups = [behave_like(trainer.policy, group) for seed in range(3) for group in random_batch(seed)]
    assert trainer.train(groups, 0, SAME)["engine_gap"] < 1e-5
    with pytest.raises(EngineGapError, match=r"disagree on version 0\.0"):
        trainer.train([group for seed in range(3) for group in random_batch(seed)], 0, SAME)
    trainer.close()
