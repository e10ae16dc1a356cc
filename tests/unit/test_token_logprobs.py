"""Logits only where they are needed, and never all of them at once: neither in the forward nor in the backward pass."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

from learner.training.policy import TokenLogprobs

VOCABULARY = 5000
ROWS = 16
"""Of logits that one chunk may hold."""


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            num_key_value_heads=1,
        )
    )


def inputs(tokens: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(VOCABULARY, (4, 64), generator=generator)
    index = torch.randperm(4 * 64, generator=generator)[:tokens]
    return ids, index, torch.randint(VOCABULARY, (tokens,), generator=generator), torch.full((tokens,), 0.7)


def saved_elements(module: TokenLogprobs, tokens: int) -> tuple[torch.Tensor, int]:
    """The log-probabilities, and the elements that the graph keeps for the backward pass, weights aside."""
    kept: dict[int, int] = {}
    own = {parameter.data_ptr() for parameter in module.parameters()}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().size() // tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        logprobs = module(*inputs(tokens))
    return logprobs, sum(kept.values())


def test_no_more_than_a_chunk_of_logits_exists_at_any_time(model):
    module = TokenLogprobs(model, max_logits=ROWS * VOCABULARY)
    tokens = 10 * ROWS + 3
    with Largest() as largest:
        logprobs, saved = saved_elements(module, tokens)
        logprobs.sum().backward()
    # The largest tensors are a chunk of logits, and the embeddings or their gradient.
    assert largest.elements <= max(ROWS, model.config.hidden_size) * VOCABULARY
    # Between the passes not even one chunk is kept.
    assert saved < ROWS * VOCABULARY
    # Without chunks both measures show the whole matrix: they can tell.
    with Largest() as largest:
        _, saved = saved_elements(TokenLogprobs(model, max_logits=tokens * VOCABULARY), tokens)
    assert largest.elements == tokens * VOCABULARY
    assert saved > tokens * VOCABULARY


def test_logits_are_computed_only_where_a_token_is_predicted(model):
    with Largest() as largest:
        TokenLogprobs(model)(*inputs(5)).sum().backward()
    assert largest.elements == model.config.hidden_size * VOCABULARY


@pytest.mark.parametrize("tokens", [0, 1, ROWS, 10 * ROWS + 3])
def test_every_rank_calls_the_same_modules_whatever_its_tokens(model, tokens):
    """Under ZeRO-3 every call of a module gathers its parameters on all ranks, in the backward pass once more."""
    module = TokenLogprobs(model, max_logits=ROWS * VOCABULARY)
    called: list[str] = []
    hooks = [
        each.register_forward_hook(lambda *_, name=name: called.append(name)) for name, each in module.named_modules()
    ]
    module(*inputs(tokens)).sum().backward()
    for hook in hooks:
        hook.remove()
    assert called.count("head") == 1
    assert "model.lm_head" not in called
    assert len(called) == len(set(called))
