"""What every rank of `test_ranks` runs: `torchrun ... -m tests.integration.ranks_program FOLDER`.

For every ZeRO stage and a few token budgets: the change that one update makes of the weights (the gradient, see
`GRADIENT`), its metrics, whether an update that is not finite is left out, and whether a checkpoint restores. One budget
has its gradients checkpointed, one the optimiser offloaded, and tied embeddings in a second round. Rank 0 writes all to
FOLDER, where the model with tied embeddings lies.
"""

import sys
import time
from pathlib import Path

import torch

from bus.messages import WeightVersion
from configs.schema import AlgorithmConfig, LearnerConfig, ModelConfig, RunConfig
from configs.tasks import ProblemsConfig, TasksConfig
from configs.training import CriticConfig, DeepSpeedConfig, OptimizerConfig
from learner.training import deepspeed_engine, policy, rank_group
from learner.training.engine_gap import EngineGapError
from learner.training.rank_group import RankGroup, serve_rank
from learner.training.rank_trainer import RankTrainer
from learner.training.ranks import Ranks, join_process_group
from runtime.child import end_process
from runtime.models import model_folder
from tests.factories import random_batch
from tests.integration.plain import GRADIENT, TRAIN

MAX_LOGITS = 5 * 106
"""Five tokens of the model's vocabulary: of every micro-batch, the ranks' numbers of chunks differ."""
BUDGETS = (1, 100, 4096)
TIED = "tied"
STAGES = (1, 2, 3)
# With a critic and a reference: estimator, ZeRO stage, budget. The last leaves the second rank nothing but fill-ups.
CRITICS = (("gae", 1, 60), ("gae", 2, 100), ("gae", 3, 60), ("vtrace", 3, 4096))
# What a rank must take from the whole minibatch, and could take from its own share; and sums of bfloat16 gradients. Each
# with two minibatches and few trajectories a micro-batch: the ranks' shares differ in number and length.
VARIANTS: dict[str, dict[str, object]] = {
    "grpo": {"advantage": "grpo"},
    "sequence_band": {"sequence_band": [0.7, 1.1]},
    "sequence_band of ppo": {"loss": "ppo", "sequence_band": [0.7, 1.1]},
    "ppo": {"loss": "ppo", "dual_clip": 3.0},
    "reinforce++": {"advantage": "reinforce++"},
}
OF_BFLOAT16 = ("grpo", "ppo")
# Far enough to clip policy and values.
STEEP = OptimizerConfig(lr=1e-2)


def config(
    stage: int,
    budget: int,
    optimizer: OptimizerConfig,
    minibatches: int = 1,
    dtype: str = "float32",
    **algorithm: object,
) -> RunConfig:
    return RunConfig(
        name="test",
        seed=3,
        model=ModelConfig(path="random-tiny", dtype=dtype, compute_dtype=dtype),
        tasks=TasksConfig(problems=ProblemsConfig(recipe="products")),
        learner=LearnerConfig(
            steps=10,
            algorithm=AlgorithmConfig.model_validate({"minibatches": minibatches} | algorithm),
            critic=CriticConfig.model_validate(
                {"minibatches": 3, "value_clip": 0.05, "optimizer": optimizer.model_dump()}
            ),
            optimizer=optimizer,
            deepspeed=DeepSpeedConfig(
                zero_stage=stage,
                micro_batch_tokens=budget,
                gradient_checkpointing=budget == 1,
                offload_optimizer=budget == 100,
            ),
        ),
    )


def weights(group: RankGroup) -> dict[str, torch.Tensor]:
    """Returns what the learner would publish."""
    layout = group.weight_layout()
    image = torch.zeros(layout.nbytes, dtype=torch.uint8)
    group.copy_weights(image)
    return {
        entry.name: image[entry.offset : entry.offset + entry.nbytes]
        .view(getattr(torch, entry.dtype))
        .reshape(entry.shape)
        for entry in layout.tensors
    }


def work(group: RankGroup, checkpoint: Path) -> dict[str, object]:
    before = weights(group)
    time.sleep(0.5)  # Rank 0 says meanwhile that it has no order yet.
    metrics = group.train(random_batch(), 1)
    after = weights(group)
    gradient = {name: before[name] - weight for name, weight in after.items()}
    skipped = group.train(random_batch(temperature=1e-44), 2)["skipped_updates"]
    unchanged = all(torch.equal(weight, after[name]) for name, weight in weights(group).items())
    checkpoint.mkdir()
    group.save(checkpoint)
    group.train(random_batch(5), 3)
    once = weights(group)
    group.load(checkpoint)
    restored = all(torch.equal(weight, after[name]) for name, weight in weights(group).items())
    group.train(random_batch(5), 3)
    repeated = all(torch.equal(weight, once[name]) for name, weight in weights(group).items())
    return {
        "gradient": gradient,
        "metrics": metrics,
        "skipped": skipped,
        "unchanged": unchanged,
        "restored": restored,
        "repeated": repeated,
    }


def variant(name: str, dtype: str) -> RunConfig:
    return config(2, 100, STEEP, 2, dtype, kl_coefficient=0.1, **VARIANTS[name])


def main() -> None:
    folder = Path(sys.argv[1])
    rank_group.WAIT_S = 0.1
    policy.MAX_LOGITS = MAX_LOGITS
    # The models are small, and every parameter is to be gathered and released.
    deepspeed_engine.PERSISTENT = 0
    join_process_group()
    results: dict[object, object] = {}
    untied, tied = model_folder("random-tiny"), folder / TIED
    cases = [(untied, stage, budget) for stage in STAGES for budget in BUDGETS] + [
        (tied, stage, 100) for stage in STAGES
    ]
    for number, (model, stage, budget) in enumerate(cases):
        trainer = RankTrainer(config(stage, budget, GRADIENT), model)
        if Ranks().rank > 0:
            serve_rank(trainer)
            continue
        group = RankGroup(trainer)
        results[model.name, stage, budget] = work(group, folder / f"checkpoint-{number}")
        group.close()
    # Two minibatches, so that proximal passes are shared as well.
    trainer = RankTrainer(config(2, 100, TRAIN, minibatches=2), model_folder("random-tiny"))
    if Ranks().rank > 0:
        serve_rank(trainer)
    else:
        group = RankGroup(trainer)
        results["metrics"] = [group.train(random_batch(seed), seed + 1) for seed in range(2)]
        group.close()
    # What the batch's engines had were other weights: all ranks find it, and can be asked for theirs afterwards.
    trainer = RankTrainer(config(2, 100, TRAIN, minibatches=2), model_folder("random-tiny"))
    if Ranks().rank > 0:
        serve_rank(trainer)
    else:
        group = RankGroup(trainer)
        before = weights(group)
        try:
            batch = [group for seed in range(4) for group in random_batch(seed)]
            group.train(batch, 0, frozenset({WeightVersion(epoch=0, n=0)}))
        except EngineGapError as error:
            results["gap"] = str(error)
        results["unchanged by the gap"] = all(
            torch.equal(weight, before[name]) for name, weight in weights(group).items()
        )
        group.close()
    for name in VARIANTS:
        for dtype in ("float32", "bfloat16") if name in OF_BFLOAT16 else ("float32",):
            trainer = RankTrainer(variant(name, dtype), model_folder("random-tiny"))
            if Ranks().rank > 0:
                serve_rank(trainer)
                continue
            group = RankGroup(trainer)
            results[name, dtype] = [group.train(random_batch(seed), seed + 1) for seed in range(2)]
            group.close()
    for advantage, stage, budget in CRITICS:
        trainer = RankTrainer(
            config(stage, budget, STEEP, 2, advantage=advantage, kl_coefficient=0.1), model_folder("random-tiny")
        )
        if Ranks().rank > 0:
            serve_rank(trainer)
            continue
        group = RankGroup(trainer)
        checkpoint = folder / f"checkpoint-{advantage}-{stage}"
        checkpoint.mkdir()
        steps = [group.train(random_batch(seed), seed + 1) for seed in range(2)]
        group.save(checkpoint)
        once = group.train(random_batch(2), 3)
        group.load(checkpoint)
        results[advantage, stage, budget] = {"steps": [*steps, once], "again": group.train(random_batch(2), 3)}
        group.close()
    if Ranks().rank == 0:
        torch.save(results, folder / "results.pt")
    torch.distributed.destroy_process_group()
    end_process(0)


if __name__ == "__main__":
    main()
