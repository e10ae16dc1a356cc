"""How the training engine sums gradients on a CPU: a toy model with tied embeddings, against plain PyTorch."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from configs.training import DeepSpeedConfig, OptimizerConfig
from learner.training.deepspeed_engine import TrainingEngine

pytestmark = pytest.mark.usefixtures("process_group")

VOCABULARY, WIDTH = 40, 8


class Toy(nn.Module):
    """Scores of every token after each token; embeddings and head are one matrix where they are tied."""

    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.hidden = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.hidden(self.embed(tokens))))


class Operations(TorchDispatchMode):
    """Notes what PyTorch computes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[Any] = set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.seen.add(operation)
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize("tied", [True, False])
def test_gradients_are_summed_where_they_lie_in_one_piece_of_memory(tied: bool):
    torch.manual_seed(0)
    toy = Toy(tied=tied)
    plain = copy.deepcopy(toy)
    engine = TrainingEngine(toy, torch.float32, OptimizerConfig(lr=1e-12), DeepSpeedConfig(), 3, "toy")
    parameters = list(toy.parameters())
    # The rate is too small to move weights. The second update's gradients are not finite, and must not reach the third's.
    for scale in (1.0, float("inf"), 1.0):
        plain.zero_grad()
        places = []
        for micro in ([[3, 5, 5, 7]], [[5, 0], [9, 5]]):
            tokens = torch.tensor(micro)
            plain(tokens).square().sum().backward()
            loss = scale * engine(tokens).square().sum()
            with Operations() as operations:
                engine.backward(loss)
            assert torch.ops.aten.mm.default in operations.seen
            assert torch.ops.aten.embedding_dense_backward.default not in operations.seen
            gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
            assert len({gradient.untyped_storage().data_ptr() for gradient in gradients}) == 1
            places.append([gradient.data_ptr() for gradient in gradients])
        assert places[0] == places[1]
        if scale == 1.0:
            torch.testing.assert_close(gradients, [parameter.grad for parameter in plain.parameters()])
        assert engine.step().applied == (scale == 1.0)
        assert all(parameter.grad is None for parameter in parameters)
    engine.close()
