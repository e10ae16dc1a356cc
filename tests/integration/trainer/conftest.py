"""Trainers of the tiny random model, made for one test each.

Nothing here depends on what this processor computes faster: a test names the type of its weights and that of its passes, or
is run in all that there are.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from configs.schema import AlgorithmConfig, LearnerConfig, ModelConfig, RunConfig
from configs.tasks import ProblemsConfig, TasksConfig
from configs.training import DeepSpeedConfig, OptimizerConfig
from learner.training.rank_trainer import RankTrainer
from tests.integration.plain import TRAIN

Arithmetic = dict[str, str]

ARITHMETIC: dict[str, Arithmetic] = {
    "float32": {"dtype": "float32", "compute": "float32"},
    "bfloat16 in float32": {"dtype": "bfloat16", "compute": "float32"},
    "bfloat16": {"dtype": "bfloat16", "compute": "bfloat16"},
}

"""Types of the weights and of the passes: `new_trainer(**arithmetic)`."""


@pytest.fixture(params=ARITHMETIC)
def arithmetic(request: pytest.FixtureRequest) -> Arithmetic:
    """Each in turn, for what holds in all of them."""
    return ARITHMETIC[request.param]


@pytest.fixture
def new_trainer(folder: Path) -> Iterator[Callable[..., RankTrainer]]:
    """Makes trainers and closes them after the test."""
    made: list[RankTrainer] = []

    def make(
        optimizer: OptimizerConfig = TRAIN,
        budget: int = 4096,
        dtype: str = "float32",
        compute: str = "float32",
        **algorithm: object,
    ) -> RankTrainer:
        config = RunConfig(
            name="test",
            seed=3,
            model=ModelConfig(path="random-tiny", dtype=dtype, compute_dtype=compute),
            tasks=TasksConfig(problems=ProblemsConfig(recipe="products")),
            learner=LearnerConfig(
                steps=10,
                algorithm=AlgorithmConfig.model_validate({"minibatches": 1} | algorithm),
                optimizer=optimizer,
                deepspeed=DeepSpeedConfig(micro_batch_tokens=budget),
            ),
        )
        made.append(RankTrainer(config, folder))
        return made[-1]

    yield make
    for trainer in made:
        trainer.close()
