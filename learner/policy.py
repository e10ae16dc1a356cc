"""The policy under training: a Hugging Face causal model inside a DeepSpeed engine.

The same path runs on a CPU and on a GPU, with float32 master weights. The forward pass always uses the weights that are
published, which have the model's dtype; on a CPU it computes with them in float32, since bfloat16 products take twice as
long there (without matrix units). Nothing here handles a signal or touches asyncio.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from configs.schema import DeepSpeedConfig, ModelConfig, OptimizerConfig
from learner.batches import MicroBatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CHECKPOINT_TAG = "policy"
MAX_LOGITS = 2**27
"""Elements of a chunk of float32 logits (512 MiB)."""
REDUCE_BUCKET = 2**24
"""Elements that ZeRO reduces at once; its default would hold 2 GB of buffers."""


class TokenLogprobs(nn.Module):
    """A causal model that computes logits only where a sampled token is predicted."""

    def __init__(self, model: "PreTrainedModel", max_logits: int = MAX_LOGITS) -> None:
        super().__init__()
        self.model: PreTrainedModel = model
        self._chunk = max(1, max_logits // model.get_output_embeddings().weight.shape[0])

    def forward(
        self, input_ids: torch.Tensor, index: torch.Tensor, targets: torch.Tensor, temperatures: torch.Tensor
    ) -> torch.Tensor:
        """Log-probabilities [N] of `targets` [N], float32, under logits over `temperatures` [N].

        `input_ids` is [S, L], padded on the right; `index` [N] points into its flattened positions. More tokens than
        one chunk of logits holds are taken chunk by chunk, each computed again in the backward pass.
        """
        hidden = self.model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state
        hidden = hidden.flatten(0, 1)[index]
        if len(hidden) <= self._chunk:
            return self._head(hidden, targets, temperatures)
        parts = zip(*(tensor.split(self._chunk) for tensor in (hidden, targets, temperatures)), strict=True)
        return torch.cat([checkpoint(self._head, *part, use_reentrant=False) for part in parts])

    def _head(self, hidden: torch.Tensor, targets: torch.Tensor, temperatures: torch.Tensor) -> torch.Tensor:
        # Rounded to the model's dtype before the division, as the engine that sampled the tokens does.
        logits = self.model.get_output_embeddings()(hidden).float()
        # In place: a second array of this size costs more than the division.
        logits.div_(temperatures[:, None])
        return torch.log_softmax(logits, dim=-1).gather(1, targets[:, None]).squeeze(1)


@dataclass(frozen=True)
class StepResult:
    """What an optimiser step did."""

    applied: bool
    """False where gradients were not finite: weights, moments and learning rate are as before."""
    grad_norm: float
    """Of all gradients, before clipping; infinite where not applied."""
    learning_rate: float
    """That the step used."""


class Policy:
    """Model, optimiser and learning-rate schedule, in one DeepSpeed engine of one rank."""

    def __init__(
        self,
        model_folder: Path,
        model: ModelConfig,
        optimizer: OptimizerConfig,
        deepspeed: DeepSpeedConfig,
        seed: int,
        total_steps: int,
        compute_dtype: torch.dtype | None = None,
    ) -> None:
        """Loads the model and builds the engine.

        Args:
            model_folder: a Hugging Face checkpoint with tokenizer.
            total_steps: optimiser steps of the whole run; warm-up must fit in.
            compute_dtype: of the forward pass; by default the model's on a GPU and float32 on a CPU.

        Raises ValueError for several ranks, for a warm-up longer than the run, and for a model that does more to its
        logits than one matrix product.
        """
        if optimizer.warmup_steps > total_steps:
            raise ValueError(
                f"learner.optimizer.warmup_steps is {optimizer.warmup_steps}, more than the run's {total_steps} steps"
            )
        self._owns_process_group = _join_process_group()
        # Imported once the accelerator is chosen: DeepSpeed warns, and guesses, where it has to find it by itself.
        import deepspeed as ds
        import transformers

        # DeepSpeed would compile a shared-memory kernel for the ranks of one host, and run the compiler to see what it
        # could build. One rank has nobody to talk to, so no kernel is on offer and no compiler is needed.
        ds.ops.__compatible_ops__ = {}
        transformers.utils.logging.disable_progress_bar()
        torch.manual_seed(seed)
        self._folder = model_folder
        self._dtype: torch.dtype = getattr(torch, model.dtype)
        compute = compute_dtype or (self._dtype if torch.cuda.is_available() else torch.float32)
        hf_model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            model_folder, dtype=self._dtype, attn_implementation="sdpa"
        )
        hf_model.to(compute)
        _disable_dropout(hf_model)
        if deepspeed.gradient_checkpointing:
            hf_model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        module = TokenLogprobs(hf_model)
        _check_logits(module)
        # Only while training does transformers checkpoint gradients, and without dropout the two modes agree.
        module.train()

        scheduler = None
        if optimizer.warmup_steps:
            warmup = optimizer.warmup_steps

            def scheduler(inner: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LambdaLR:
                return torch.optim.lr_scheduler.LambdaLR(inner, lambda step: min(1.0, (step + 1) / warmup))

        self._engine, *_ = ds.initialize(
            model=module,
            model_parameters=[parameter for parameter in module.parameters() if parameter.requires_grad],
            config=_engine_config(optimizer, deepspeed, compute),
            lr_scheduler=scheduler,
            dist_init_required=False,
        )
        self.device: torch.device = self._engine.device

    def token_logprobs(self, micro: MicroBatch) -> torch.Tensor:
        """Log-probability [N] of each sampled token at its temperature, float32, on the policy's device.

        With gradient unless called under `torch.no_grad()`.
        """
        micro = micro.to(self.device)
        return self._engine(micro.input_ids, micro.index, micro.targets, micro.temperatures)

    def backward(self, loss: torch.Tensor) -> None:
        """Adds the gradient of `loss` (scalar) to what the next step applies."""
        self._engine.backward(loss, scale_wrt_gas=False)

    def optimizer_step(self) -> StepResult:
        """Applies the gradients accumulated since the last step, clipped by their norm, and clears them.

        Gradients that are not finite are dropped instead.
        """
        learning_rate = self._engine.get_lr()[0]
        self._engine.step()
        applied = self._engine.was_step_applied()
        norm = self._engine.get_global_grad_norm()
        self._round_weights()
        return StepResult(applied=applied, grad_norm=float(norm), learning_rate=learning_rate)

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every weight once, tied ones under their first name: Hugging Face name, copy on the CPU in the model's dtype.

        The order is the same in every process that loads the same model.
        """
        import deepspeed as ds

        for name, parameter in self._module.model.named_parameters():
            with ds.zero.GatheredParameters([parameter]):
                yield name, parameter.detach().to("cpu", self._dtype, copy=True)

    def save(self, folder: Path) -> None:
        """Writes everything that training continues from: model, optimiser, schedule, random state."""
        state = {"cpu_rng": torch.get_rng_state()}
        if self.device.type == "cuda":
            state["cuda_rng"] = torch.cuda.get_rng_state(self.device)
        self._engine.save_checkpoint(str(folder), tag=CHECKPOINT_TAG, client_state=state)

    def load(self, folder: Path) -> None:
        """Continues from what `save` wrote. DeepSpeed unpickles it, so `folder` must be the run's own.

        Raises FileNotFoundError where there is none.
        """
        if not (folder / CHECKPOINT_TAG).is_dir():
            raise FileNotFoundError(f"no checkpoint of the policy in {folder}")
        _, state = self._engine.load_checkpoint(str(folder), tag=CHECKPOINT_TAG)
        self._round_weights()
        torch.set_rng_state(state["cpu_rng"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"], self.device)

    def export(self, folder: Path) -> None:
        """Writes a Hugging Face checkpoint with tokenizer, in the model's dtype."""
        from transformers import AutoTokenizer

        model = self._module.model
        model.save_pretrained(folder, state_dict=dict(self.named_weights()))
        # save_pretrained notes the dtype of the weights in memory, which readers would widen the file's to.
        model.config.dtype = self._dtype
        model.config.save_pretrained(folder)
        AutoTokenizer.from_pretrained(self._folder).save_pretrained(folder)

    def close(self) -> None:
        """Frees the engine, and the process group if this policy made it."""
        import deepspeed as ds

        self._engine.destroy()
        if self._owns_process_group:
            ds.comm.destroy_process_group()

    def _round_weights(self) -> None:
        """Leaves the forward pass the weights that are published, whatever type it computes in.

        The optimiser's float32 master weights are another copy and keep what rounding takes: with finer weights the
        forward pass would be another policy than the engine's, whose sub-rounding updates the engine never sees.
        """
        import deepspeed as ds

        for parameter in self._module.parameters():
            if parameter.dtype != self._dtype:
                with ds.zero.GatheredParameters([parameter], modifier_rank=0), torch.no_grad():
                    parameter.copy_(parameter.to(self._dtype))

    @property
    def _module(self) -> TokenLogprobs:
        return self._engine.module


def _join_process_group() -> bool:
    """Makes sure of a process group of one rank; returns whether it was made here. Raises ValueError for more ranks."""
    ranks = (
        torch.distributed.get_world_size() if torch.distributed.is_initialized() else int(os.getenv("WORLD_SIZE", "1"))
    )
    if ranks > 1:
        raise ValueError(f"the learner was launched with {ranks} ranks: several ranks are not supported yet, start one")
    cuda = torch.cuda.is_available()
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if cuda else "cpu")
    os.environ.setdefault("LOCAL_RANK", "0")
    if torch.distributed.is_initialized():
        return False
    # One rank meets nobody: a store in memory needs no address and no port.
    torch.distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    return True


def _engine_config(optimizer: OptimizerConfig, deepspeed: DeepSpeedConfig, compute: torch.dtype) -> dict[str, Any]:
    """DeepSpeed's configuration: whoever calls scales the losses, and steps after any number of micro-batches."""
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": optimizer.max_grad_norm,
        "steps_per_print": None,
        "optimizer": {
            "type": "AdamW",
            "params": {
                "torch_adam": True,
                # On a CPU fewer passes and no temporaries as large as the model.
                "fused": not torch.cuda.is_available(),
                "lr": optimizer.lr,
                "betas": list(optimizer.betas),
                "eps": optimizer.eps,
                "weight_decay": optimizer.weight_decay,
            },
        },
        "zero_optimization": {
            # Stage 0 would sum bfloat16 gradients in bfloat16 and check nothing for infinity. On one rank stage 1
            # splits nothing either.
            "stage": max(1, deepspeed.zero_stage),
            "overlap_comm": False,
            "reduce_bucket_size": REDUCE_BUCKET,
            "allgather_bucket_size": REDUCE_BUCKET,
        },
        "bf16": {"enabled": compute == torch.bfloat16},
        "data_types": {"grad_accum_dtype": "fp32"},
    }


def _disable_dropout(model: nn.Module) -> None:
    """Sets every dropout to 0: the policy must be the function that sampled, on every pass."""
    modules: Iterable[Any] = model.modules()
    for module in modules:
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0


def _check_logits(module: TokenLogprobs) -> None:
    """Raises ValueError where the model's logits are not its output embeddings' product (soft caps, scales)."""
    tokens = torch.arange(8)[None]
    with torch.no_grad():
        hidden = module.model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
        ours = module.model.get_output_embeddings()(hidden)
        theirs = module.model(input_ids=tokens, use_cache=False).logits
    if not torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4):
        raise ValueError(
            f"{type(module.model).__name__} does more to its logits than one matrix product: it is not supported"
        )
