"""A trainer's checkpoints and exports: training goes on from them bit for bit, with the settings of the day."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from configs.schema import ModelConfig
from configs.training import DeepSpeedConfig, OptimizerConfig
from learner.training.batches import micro_batches
from learner.training.policy import Policy
from tests.factories import random_batch
from tests.integration.plain import (
    TRAIN,
    difference,
    plain_logprobs,
    weights,
)

pytestmark = pytest.mark.usefixtures("process_group")


def test_a_restored_trainer_continues_bit_for_bit(new_trainer, arithmetic, tmp_path):
    optimizer = OptimizerConfig(lr=1e-3, warmup_steps=5)
    trainer = new_trainer(optimizer, **arithmetic, minibatches=2)
    trainer.train(random_batch(1), 1)
    trainer.policy.save(tmp_path)
    expected = trainer.train(random_batch(2), 2)
    restored = new_trainer(optimizer, **arithmetic, minibatches=2)
    assert not torch.equal(weights(restored)["lm_head.weight"], weights(trainer)["lm_head.weight"])
    restored.policy.load(tmp_path)
    metrics = restored.train(random_batch(2), 2)
    assert all(torch.equal(weight, weights(trainer)[name]) for name, weight in weights(restored).items())
    # Four of five steps of warm-up.
    assert metrics["learning_rate"] == expected["learning_rate"] == pytest.approx(1e-3 * 4 / 5)
    assert metrics["loss"] == expected["loss"]


@pytest.mark.parametrize(
    ("change", "learning_rate"),
    [
        ({"lr": 1e-4}, 1e-4),
        ({"betas": (0.5, 0.6)}, 1e-3),
        ({"eps": 1e-2}, 1e-3),
        ({"weight_decay": 0.5}, 1e-3),
        # The second of ten steps.
        ({"schedule": "linear"}, 0.9e-3),
        ({"warmup_steps": 5}, 0.4e-3),
        ({"lr": 1e-2, "schedule": "linear", "warmup_steps": 4}, 0.5e-2),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_restored_trainer_has_the_settings_that_it_was_made_with(new_trainer, tmp_path, change, learning_rate):
    """And not those that the checkpoint was written under."""
    written = new_trainer(OptimizerConfig(lr=1e-3))
    written.train(random_batch(1), 1)
    written.save(tmp_path)
    unchanged, changed = new_trainer(OptimizerConfig(lr=1e-3)), new_trainer(OptimizerConfig(**({"lr": 1e-3} | change)))
    unchanged.load(tmp_path)
    changed.load(tmp_path)
    assert unchanged.train(random_batch(2), 2)["learning_rate"] == 1e-3
    assert changed.train(random_batch(2), 2)["learning_rate"] == pytest.approx(learning_rate, rel=1e-12)
    apart = difference(weights(changed), weights(unchanged))
    assert max(change.abs().max() for change in apart.values()) > 1e-6


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_restored_trainer_clips_to_the_norm_that_it_was_made_with(folder, tmp_path, stage):
    def make(norm: float) -> Policy:
        # So large an epsilon that a clipped gradient makes a smaller step.
        optimizer = OptimizerConfig(lr=1e3, eps=1e3, max_grad_norm=norm)
        model = ModelConfig(path="random-tiny", dtype="float32")
        return Policy(folder, model, optimizer, DeepSpeedConfig(zero_stage=stage), 0, 10, torch.float32)

    def step(policy: Policy) -> float:
        before = dict(policy.named_weights())
        micro = micro_batches([item for group in random_batch() for item in group], torch.zeros(12), 4096)[0]
        policy.backward(-policy.token_logprobs(micro).sum())
        policy.optimizer_step()
        return max((weight - before[name]).abs().max().item() for name, weight in policy.named_weights())

    written = make(100.0)
    step(written)
    written.save(tmp_path)
    wide, narrow = make(100.0), make(1e-3)
    for policy in (wide, narrow):
        policy.load(tmp_path)
    # What the first moment still holds is half of the step, at most.
    assert step(narrow) < 0.9 * step(wide)
    for policy in (narrow, wide, written):
        policy.close()


PARTS = ["policy exp_avg", "policy exp_avg_sq", "policy master", "policy step"]


def test_optimizer_states_are_compared_beyond_the_rounding_of_the_weights(new_trainer, arithmetic, tmp_path):
    small = OptimizerConfig(lr=1e-9)
    trainer, other = (new_trainer(small, **arithmetic) for _ in range(2))
    for each in (trainer, other):
        each.train(random_batch(), 1)
    trainer.save(tmp_path)
    assert other.load_and_compare(tmp_path) == dict.fromkeys(PARTS, True)
    # Another batch, at a rate that moves hardly any bfloat16 weight: moments and master weights show the difference.
    other.train(random_batch(1), 2)
    moved = sum(int((weight != weights(trainer)[name]).sum()) for name, weight in weights(other).items())
    assert moved < trainer.policy.parameters / 1000 or arithmetic["dtype"] == "float32"
    assert other.load_and_compare(tmp_path) == dict.fromkeys(PARTS, False)
    # And it went back to what it was compared with.
    assert other.load_and_compare(tmp_path) == dict.fromkeys(PARTS, True)
    # Nothing was trained yet.
    assert new_trainer(small, **arithmetic).load_and_compare(tmp_path) == dict.fromkeys(PARTS, False)


def test_the_critics_state_is_compared_as_well(new_trainer, tmp_path):
    trainer = new_trainer(advantage="gae")
    trainer.train(random_batch(), 1)
    trainer.save(tmp_path)
    parts = [*PARTS, *(name.replace("policy", "critic") for name in PARTS)]
    assert trainer.load_and_compare(tmp_path) == dict.fromkeys(parts, True)
    trainer.train(random_batch(), 2)
    assert trainer.load_and_compare(tmp_path) == dict.fromkeys(parts, False)


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_every_engine_trains_saves_and_restores(folder, tmp_path, stage, compute):
    def new() -> Policy:
        return Policy(
            folder,
            ModelConfig(path="random-tiny", dtype="bfloat16"),
            TRAIN,
            DeepSpeedConfig(
                zero_stage=stage, gradient_checkpointing=stage == 2, offload_optimizer=compute == torch.bfloat16
            ),
            seed=0,
            total_steps=2,
            compute=compute,
        )

    micros = micro_batches([item for group in random_batch() for item in group], torch.ones(12), 100)
    tokens = sum(len(micro.targets) for micro in micros)

    def step(policy: Policy) -> float:
        total = 0.0
        for micro in micros:
            loss = -policy.token_logprobs(micro).sum() / tokens
            policy.backward(loss)
            total += loss.item()
        assert policy.optimizer_step().applied
        return total

    policy, restored = new(), new()
    first = step(policy)
    policy.save(tmp_path)
    assert step(policy) < first
    restored.load(tmp_path)
    step(restored)
    expected = dict(policy.named_weights())
    for name, weight in restored.named_weights():
        assert weight.dtype == torch.bfloat16
        assert torch.equal(weight, expected[name])
    policy.close()
    restored.close()


def test_a_missing_checkpoint_is_an_error(new_trainer, tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        new_trainer().policy.load(tmp_path)


def test_an_export_is_a_hugging_face_checkpoint(new_trainer, tmp_path, arithmetic):
    trainer = new_trainer(**arithmetic)
    trainer.train(random_batch(), 1)
    trainer.policy.export(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.dtype == getattr(torch, arithmetic["dtype"])
    assert all(torch.equal(model.get_parameter(name), weight) for name, weight in weights(trainer).items())
    item = random_batch()[0][0]
    with torch.no_grad():
        ours = trainer.policy.token_logprobs(micro_batches([item], torch.zeros(1), 4096)[0])
        theirs = plain_logprobs(model.float(), item)
    # Also of bfloat16 weights: the policy computes with the very weights that it publishes. Passes in bfloat16 round.
    torch.testing.assert_close(ours, theirs, atol=1e-5 if arithmetic["compute"] == "float32" else 0.05, rtol=0)
    assert AutoTokenizer.from_pretrained(tmp_path).decode([10, 20])
