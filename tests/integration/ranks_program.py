"""What every rank of `test_ranks` runs: `torchrun ... -m tests.integration.ranks_program FOLDER`.

For every ZeRO stage and a few token budgets (at one of them with the optimiser offloaded): the change that one update
makes of the weights (the gradient, see `GRADIENT`), its metrics, and whether an update that is not finite is left out and
a checkpoint restores. Rank 0 writes all to FOLDER.
"""

import sys
import time
from pathlib import Path

import torch

from configs.schema import AlgorithmConfig, LearnerConfig, ModelConfig, RunConfig
from configs.tasks import ProblemsConfig, TasksConfig
from configs.training import CriticConfig, DeepSpeedConfig, OptimizerConfig
from learner.training import crew as orders
from learner.training.crew import Crew, follow
from learner.training.ranks import Ranks, join_process_group
from learner.training.trainer import Trainer
from runtime.models import model_folder
from tests.integration.test_trainer import GRADIENT, TRAIN, batch

BUDGETS = (1, 100, 4096)
STAGES = (1, 2, 3)
# With a critic and a reference: estimator, ZeRO stage, budget. The last leaves the second rank nothing but fill-ups.
CRITICS = (("gae", 2, 100), ("vtrace", 3, 4096))
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
            deepspeed=DeepSpeedConfig(zero_stage=stage, micro_batch_tokens=budget, offload_optimizer=budget == 100),
        ),
    )


def weights(crew: Crew) -> dict[str, torch.Tensor]:
    """What the learner would publish."""
    layout = crew.weight_layout()
    image = torch.zeros(layout.nbytes, dtype=torch.uint8)
    crew.copy_weights(image)
    return {
        entry.name: image[entry.offset : entry.offset + entry.nbytes]
        .view(getattr(torch, entry.dtype))
        .reshape(entry.shape)
        for entry in layout.tensors
    }


def work(crew: Crew, stage: int, budget: int, folder: Path) -> dict[str, object]:
    before = weights(crew)
    time.sleep(0.5)  # Rank 0 says meanwhile that it has no order yet.
    metrics = crew.train(batch(), 1)
    after = weights(crew)
    gradient = {name: before[name] - weight for name, weight in after.items()}
    skipped = crew.train(batch(temperature=1e-44), 2)["skipped_updates"]
    unchanged = all(torch.equal(weight, after[name]) for name, weight in weights(crew).items())
    checkpoint = folder / f"checkpoint-{stage}-{budget}"
    checkpoint.mkdir()
    crew.save(checkpoint)
    crew.train(batch(5), 3)
    once = weights(crew)
    crew.load(checkpoint)
    restored = all(torch.equal(weight, after[name]) for name, weight in weights(crew).items())
    crew.train(batch(5), 3)
    repeated = all(torch.equal(weight, once[name]) for name, weight in weights(crew).items())
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
    orders.WAIT_S = 0.1
    join_process_group()
    results: dict[object, object] = {}
    for stage in STAGES:
        for budget in BUDGETS:
            trainer = Trainer(config(stage, budget, GRADIENT), model_folder("random-tiny"))
            if Ranks().rank > 0:
                follow(trainer)
                continue
            crew = Crew(trainer)
            results[stage, budget] = work(crew, stage, budget, folder)
            crew.close()
    # Two minibatches, so that proximal passes are shared as well.
    trainer = Trainer(config(2, 100, TRAIN, minibatches=2), model_folder("random-tiny"))
    if Ranks().rank > 0:
        follow(trainer)
    else:
        crew = Crew(trainer)
        results["metrics"] = [crew.train(batch(seed), seed + 1) for seed in range(2)]
        crew.close()
    for name in VARIANTS:
        for dtype in ("float32", "bfloat16") if name in OF_BFLOAT16 else ("float32",):
            trainer = Trainer(variant(name, dtype), model_folder("random-tiny"))
            if Ranks().rank > 0:
                follow(trainer)
                continue
            crew = Crew(trainer)
            results[name, dtype] = [crew.train(batch(seed), seed + 1) for seed in range(2)]
            crew.close()
    for advantage, stage, budget in CRITICS:
        trainer = Trainer(
            config(stage, budget, STEEP, 2, advantage=advantage, kl_coefficient=0.1), model_folder("random-tiny")
        )
        if Ranks().rank > 0:
            follow(trainer)
            continue
        crew = Crew(trainer)
        checkpoint = folder / f"checkpoint-{advantage}"
        checkpoint.mkdir()
        results[advantage] = [crew.train(batch(seed), seed + 1) for seed in range(2)]
        crew.save(checkpoint)
        results[f"{advantage} once"] = crew.train(batch(2), 3)
        crew.load(checkpoint)
        results[f"{advantage} again"] = crew.train(batch(2), 3)
        crew.close()
    if Ranks().rank == 0:
        torch.save(results, folder / "results.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
