"""Problem recipes of this project, registered with reasoning-gym beside its own.

Importing this module imports reasoning-gym (seconds): `tasks.problems` does so only where a recipe is named.

- `two_digit_products`: "What is 23 * 45?", hard for a small model in its head and easy with code. (reasoning-gym's
  `products` asks at greater length, and for the bare result.)
- `digit_sums`: "2+3=", a sum of at most 9, for models with random weights.
"""

from dataclasses import dataclass
from random import Random
from typing import Any

from reasoning_gym.factory import DATASETS, ProceduralDataset, create_dataset, register_dataset

__all__ = ["DATASETS", "create_dataset"]


@dataclass
class SizedConfig:
    """Says what every recipe is given."""

    seed: int = 0
    size: int = 500


class TwoDigitProducts(ProceduralDataset):
    """Products of two factors, each from 10 to 99."""

    def __init__(self, config: SizedConfig) -> None:
        super().__init__(config=config, seed=config.seed, size=config.size)

    def __getitem__(self, idx: int) -> dict[str, Any]:
        rng = Random(self.seed + idx)
        a, b = rng.randint(10, 99), rng.randint(10, 99)
        return {"question": f"What is {a} * {b}?", "answer": str(a * b), "metadata": {}}


class DigitSums(ProceduralDataset):
    """Sums of two digits that are a digit."""

    def __init__(self, config: SizedConfig) -> None:
        super().__init__(config=config, seed=config.seed, size=config.size)

    def __getitem__(self, idx: int) -> dict[str, Any]:
        rng = Random(self.seed + idx)
        total = rng.randint(0, 9)
        a = rng.randint(0, total)
        return {"question": f"{a}+{total - a}=", "answer": str(total), "metadata": {}}


register_dataset("two_digit_products", TwoDigitProducts, SizedConfig)
register_dataset("digit_sums", DigitSums, SizedConfig)
