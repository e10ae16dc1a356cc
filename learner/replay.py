"""Training again from a run's archive, without actors or bus.

The results are taken in the order in which the learner archived them, through the same ledger and the same steps. With the
same configuration, on the same hardware and with as many threads and ranks, a CPU comes to the same weights, bit for bit.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from bus.messages import Metrics
from bus.metrics import measured, metrics_line
from configs.schema import RunConfig
from learner.step_metrics import batch_metrics
from learner.steps import Steps
from learner.tickets.archive import read_archive

if TYPE_CHECKING:
    from learner.training.trainer import Trainer


@dataclass(frozen=True)
class Difference:
    """Says how two Hugging Face checkpoints differ."""

    weights: int
    """How many there are."""
    different: int
    largest: float


def replay(config: RunConfig, trainer: "Trainer", run: Path, out: Path, report: Callable[[Metrics], None]) -> int:
    """Trains on everything that the archive in the folder `run` holds, and exports the model to `out`.

    Args:
        config: the run's; `configs.agreement.EFFECTS` says what may differ.
        out: takes `model/` and `metrics.jsonl`.
        report: called after each step.

    Returns the number of steps, fewer than the configuration's where the archive ends before. Raises MessageError where
    the archive is damaged, and what `Steps.train` raises.
    """
    out.mkdir(parents=True)
    steps = Steps(config, trainer, out)
    results = read_archive(run / "results")
    version = 0
    with (out / "metrics.jsonl").open("w") as file:
        while version < config.learner.steps:
            steps.ledger.admit(version)
            while steps.ledger.ready(version) is None and (item := next(results, None)):
                steps.ledger.accept(*item)
            if steps.ledger.ready(version) is None:
                break
            batch = steps.ledger.take(version)
            values = batch_metrics(batch, None) | steps.train(batch)
            values |= {f"tickets_{name}": float(count) for name, count in steps.ledger.balance().items()}
            version += 1
            metrics = measured("learner", "replay", values, version, time.time())
            file.write(metrics_line(metrics, version, run.name) + "\n")
            file.flush()
            report(metrics)
    trainer.export(out / "model")
    return version


def difference(one: Path, other: Path) -> Difference:
    """Compares the weights of two Hugging Face checkpoints of the same model."""
    weights = different = 0
    largest = 0.0
    for (name, left), (other_name, right) in zip(_tensors(one), _tensors(other), strict=True):
        if name != other_name or left.shape != right.shape or left.dtype != right.dtype:
            raise ValueError(f"{one} and {other} hold different models: {name} and {other_name}")
        weights += left.numel()
        # By their bits: a negative zero or a NaN is a difference where it is on one side only.
        bits = {2: torch.int16, 4: torch.int32}[left.element_size()]
        unequal = left.view(bits) != right.view(bits)
        different += int(unequal.sum())
        if unequal.any():
            largest = max(largest, float((left[unequal].float() - right[unequal].float()).abs().max()))
    return Difference(weights, different, largest)


def _tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    from safetensors import safe_open

    where = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            where.update(dict.fromkeys(file.keys(), path))
    for name in sorted(where):
        with safe_open(where[name], "pt") as file:
            yield name, file.get_tensor(name)
