"""The critic: the policy's architecture with one value for each token instead of logits, in a training engine of its own.

Its value at a sampled token is of the state before that token: prompt, response so far, tool output included. It starts from
the policy's first weights with a head of zeros, so every value is 0 until it has learnt.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from configs.training import CriticConfig, DeepSpeedConfig
from learner.training.batches import MicroBatch
from learner.training.deepspeed_engine import StepResult, TrainingEngine, prepare_to_train

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CHECKPOINT_TAG = "critic"


class TokenValues(nn.Module):
    """A model's body with a linear head, evaluated only where a sampled token is predicted."""

    def __init__(self, body: "PreTrainedModel") -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(body.config.hidden_size, 1, dtype=body.dtype)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, input_ids: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Returns the values [N], float32.

        `input_ids` is [S, L], padded on the right; `index` [N] points into its flat positions.
        """
        hidden = self.body(input_ids=input_ids, use_cache=False).last_hidden_state
        return self.head(hidden.flatten(0, 1)[index]).squeeze(1).float()


class Critic:
    """Body, head, optimiser and learning-rate schedule, in one training engine."""

    def __init__(
        self,
        model_folder: Path,
        critic: CriticConfig,
        deepspeed: DeepSpeedConfig,
        total_steps: int,
        compute: torch.dtype,
    ) -> None:
        """Loads the body from `model_folder` and builds the engine, see `TrainingEngine` for `total_steps` and errors.

        Nobody samples from the critic, so its weights are rounded to nothing coarser than `compute`, its passes' dtype.
        """
        import transformers

        hf_model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            model_folder, dtype=compute, attn_implementation="sdpa", trust_remote_code=False
        )
        prepare_to_train(hf_model, deepspeed)
        module = TokenValues(hf_model.base_model)
        self._engine = TrainingEngine(module, compute, critic.optimizer, deepspeed, total_steps, CHECKPOINT_TAG)

    def values(self, micro: MicroBatch) -> torch.Tensor:
        """Returns the value [N] of each sampled token, float32, on the critic's device.

        With gradient unless under `torch.no_grad()`.
        """
        micro = micro.to(self._engine.device)
        return self._engine(micro.input_ids, micro.index)

    def backward(self, loss: torch.Tensor) -> None:
        """See `TrainingEngine.backward`."""
        self._engine.backward(loss)

    def optimizer_step(self) -> StepResult:
        """See `TrainingEngine.step`."""
        return self._engine.step()

    def save(self, folder: Path) -> None:
        """Writes everything that training continues from; see `TrainingEngine.save`."""
        self._engine.save(folder)

    def load(self, folder: Path) -> None:
        """Continues from what `save` wrote; see `TrainingEngine.load`."""
        self._engine.load(folder)

    def state_digests(self) -> dict[str, str]:
        """See `TrainingEngine.state_digests`."""
        return self._engine.state_digests()

    def close(self) -> None:
        """Ends the engine; see `TrainingEngine.close`."""
        self._engine.close()
