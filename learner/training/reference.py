"""The reference policy: the model that the run began with, frozen. Every rank holds a whole copy of it."""

from pathlib import Path
from typing import Any

import torch

from configs.schema import ModelConfig
from learner.training.batches import MicroBatch
from learner.training.policy import TokenLogprobs


class ReferencePolicy:
    """Log-probabilities of a model that is never updated."""

    def __init__(self, model_folder: Path, model: ModelConfig, device: torch.device, compute: torch.dtype) -> None:
        """Loads the model from `model_folder` onto `device`; its weights are rounded as the policy's are."""
        import transformers

        dtype: torch.dtype = getattr(torch, model.dtype)
        hf_model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            model_folder, dtype=dtype, attn_implementation="sdpa", trust_remote_code=False
        )
        self._module = TokenLogprobs(hf_model.to(device, compute).eval().requires_grad_(False))
        self._device = device

    @torch.no_grad()
    def token_logprobs(self, micro: MicroBatch) -> torch.Tensor:
        """Returns the log-probability [N] of each sampled token at its temperature, float32, on the reference's device."""
        micro = micro.to(self._device)
        return self._module(micro.input_ids, micro.index, micro.targets, micro.temperatures)
