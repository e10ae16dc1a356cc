"""The policy under training: a Hugging Face causal model inside a training engine.

The forward pass always uses the weights that are published, which have the model's dtype, whatever it computes in
(`runtime.compute`).
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from configs.schema import ModelConfig
from configs.training import DeepSpeedConfig, OptimizerConfig
from learner.training.batches import MicroBatch
from learner.training.deepspeed_engine import StepResult, TrainingEngine, prepare_to_train
from runtime.model_files import model_tensors
from runtime.models import ModelError
from weights.codec import Layout

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CHECKPOINT_TAG = "policy"
MAX_LOGITS = 2**27
"""Elements of a chunk of float32 logits (512 MiB)."""


class TokenLogprobHead(nn.Module):
    """Turns hidden states into log-probabilities of given tokens, one chunk of logits at a time.

    It shares the output embeddings' parameters and is called once a forward pass, however many chunks there are. ZeRO-3
    gathers a module's parameters at every call of it, and its ranks wait for each other there: with a call for each chunk,
    ranks with different numbers of tokens would wait for ever.
    """

    def __init__(self, output: nn.Linear, max_logits: int) -> None:
        """Takes the parameters of the output embeddings `output`; `max_logits` bounds the elements of a chunk."""
        super().__init__()
        self.weight = output.weight
        self.bias = output.bias
        self._chunk = max(1, max_logits // output.weight.shape[0])

    def forward(self, hidden: torch.Tensor, targets: torch.Tensor, temperatures: torch.Tensor) -> torch.Tensor:
        """Returns the log-probabilities [N] of `targets` [N], float32, under logits over `temperatures` [N].

        `hidden` is [N, H]. More tokens than one chunk holds are taken chunk by chunk, each computed again in the backward
        pass.
        """
        if len(hidden) <= self._chunk:
            return self._logprobs(hidden, targets, temperatures)
        parts = zip(*(tensor.split(self._chunk) for tensor in (hidden, targets, temperatures)), strict=True)
        return torch.cat([checkpoint(self._logprobs, *part, use_reentrant=False) for part in parts])

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Returns the logits [..., V] of `hidden` [..., H], in its dtype."""
        return nn.functional.linear(hidden, self.weight, self.bias)

    def _logprobs(self, hidden: torch.Tensor, targets: torch.Tensor, temperatures: torch.Tensor) -> torch.Tensor:
        # Rounded to the model's dtype before the division, as the engine that sampled the tokens does.
        logits = self.logits(hidden).float()
        # In place: a second array of this size costs more than the division.
        logits.div_(temperatures[:, None])
        return torch.log_softmax(logits, dim=-1).gather(1, targets[:, None]).squeeze(1)


class TokenLogprobs(nn.Module):
    """A causal model that computes logits only where a sampled token is predicted."""

    def __init__(self, model: "PreTrainedModel", max_logits: int | None = None) -> None:
        """Wraps `model`; a chunk of logits has at most `max_logits` elements, or `MAX_LOGITS`."""
        super().__init__()
        self.model: PreTrainedModel = model
        self.head = TokenLogprobHead(model.get_output_embeddings(), max_logits or MAX_LOGITS)

    def forward(
        self, input_ids: torch.Tensor, index: torch.Tensor, targets: torch.Tensor, temperatures: torch.Tensor
    ) -> torch.Tensor:
        """Returns the log-probabilities [N] of `targets` [N], float32, under logits over `temperatures` [N].

        `input_ids` is [S, L], padded on the right; `index` [N] points into its flattened positions.
        """
        hidden = self.model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state
        return self.head(hidden.flatten(0, 1)[index], targets, temperatures)


class Policy:
    """Model, optimiser and learning-rate schedule, in one training engine."""

    def __init__(
        self,
        model_folder: Path,
        model: ModelConfig,
        optimizer: OptimizerConfig,
        deepspeed: DeepSpeedConfig,
        seed: int,
        total_steps: int,
        compute: torch.dtype,
    ) -> None:
        """Loads the model and builds the engine.

        Args:
            model_folder: a Hugging Face checkpoint with tokenizer.
            total_steps: optimiser steps of the whole run; warm-up must fit in.
            compute: dtype of the forward pass.

        Raises ModelError for a model that does more to its logits than one matrix product, and what `TrainingEngine` does.
        """
        import transformers

        transformers.utils.logging.disable_progress_bar()
        torch.manual_seed(seed)
        self._folder = model_folder
        self._dtype: torch.dtype = getattr(torch, model.dtype)
        hf_model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            model_folder, dtype=self._dtype, attn_implementation="sdpa", trust_remote_code=False
        )
        self.parameters: int = sum(parameter.numel() for parameter in hf_model.parameters())
        """How many the model has, tied ones once."""
        self.vocabulary: int = hf_model.get_input_embeddings().num_embeddings
        """Token ids that the model knows: those below."""
        hf_model.to(compute)
        prepare_to_train(hf_model, deepspeed)
        module = TokenLogprobs(hf_model)
        _check_logits(module)
        self._engine = TrainingEngine(module, self._dtype, optimizer, deepspeed, total_steps, CHECKPOINT_TAG)
        self.device: torch.device = self._engine.device

    def token_logprobs(self, micro: MicroBatch) -> torch.Tensor:
        """Returns the log-probability [N] of each sampled token at its temperature, float32, on the policy's device.

        With gradient unless called under `torch.no_grad()`.
        """
        micro = micro.to(self.device)
        return self._engine(micro.input_ids, micro.index, micro.targets, micro.temperatures)

    def backward(self, loss: torch.Tensor) -> None:
        """Adds the gradient of `loss` (scalar) to what the next step applies."""
        self._engine.backward(loss)

    def optimizer_step(self) -> StepResult:
        """Applies the gradients accumulated since the last step; see `TrainingEngine.step`."""
        return self._engine.step()

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yields every weight once, tied ones under the first name: Hugging Face name, CPU copy in the model's dtype.

        The order is the same in every process that loads the same model. Under ZeRO-3 one parameter is gathered at a time.
        """
        for name, parameter in self._gathered():
            yield name, parameter.detach().to("cpu", self._dtype, copy=True)

    def copy_weights(self, image: torch.Tensor | None) -> None:
        """Puts every weight in its place in `image`, uint8 on the host, as `weight_layout` has it.

        `image` is None on ranks that only take part, as all have to.
        """
        for entry, (_, parameter) in zip(self.weight_layout().tensors, self._gathered(), strict=True):
            if image is not None:
                target = image[entry.offset : entry.offset + entry.nbytes].view(self._dtype)
                target.view(parameter.shape).copy_(parameter.detach())

    def _gathered(self) -> Iterator[tuple[str, nn.Parameter]]:
        import deepspeed as ds

        for name, parameter in self._module.model.named_parameters():
            with ds.zero.GatheredParameters([parameter]):
                yield name, parameter

    def weight_layout(self) -> Layout:
        """Returns where each weight lies in an image of them, in the order of `named_weights`; gathers nothing."""
        size = self._dtype.itemsize
        dtype = str(self._dtype).removeprefix("torch.")
        # Under ZeRO-3 a parameter's own shape is empty while it is not gathered.
        shapes = {n: tuple(getattr(p, "ds_shape", p.shape)) for n, p in self._module.model.named_parameters()}
        return Layout.of([(name, dtype, shape, math.prod(shape) * size) for name, shape in shapes.items()])

    def save(self, folder: Path) -> None:
        """Writes everything that training continues from; see `TrainingEngine.save`."""
        self._engine.save(folder)

    def load(self, folder: Path) -> None:
        """Continues from what `save` wrote; see `TrainingEngine.load`."""
        self._engine.load(folder)

    def state_digests(self) -> dict[str, str]:
        """See `TrainingEngine.state_digests`."""
        return self._engine.state_digests()

    def export(self, folder: Path) -> None:
        """Writes a Hugging Face checkpoint with tokenizer, in the model's dtype. Raises ModelError where it is not whole."""
        from transformers import AutoTokenizer

        model = self._module.model
        model.save_pretrained(folder, state_dict=dict(self.named_weights()))
        # save_pretrained notes the dtype of the weights in memory, which readers would widen the file's to.
        model.config.dtype = self._dtype
        model.config.save_pretrained(folder)
        model_tensors(folder)
        AutoTokenizer.from_pretrained(self._folder, trust_remote_code=False).save_pretrained(folder)

    def close(self) -> None:
        """Ends the engine; see `TrainingEngine.close`."""
        self._engine.close()

    @property
    def _module(self) -> TokenLogprobs:
        return self._engine.module


def _check_logits(module: TokenLogprobs) -> None:
    """Raises ModelError where the model's logits are not its output embeddings' product (soft caps, scales)."""
    tokens = torch.arange(8)[None]
    with torch.no_grad():
        hidden = module.model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
        ours = module.head.logits(hidden)
        theirs = module.model(input_ids=tokens, use_cache=False).logits
    if not torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4):
        raise ModelError(
            f"{type(module.model).__name__} does more to its logits than one matrix product: it is not supported"
        )
