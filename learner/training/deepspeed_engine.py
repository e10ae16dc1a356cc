"""A module under training: DeepSpeed's engine around it, with float32 master weights, AdamW and a learning-rate schedule.

The same path runs on a CPU and on a GPU. The forward pass always uses weights rounded to the dtype in which they are
published, whatever it computes in. Nothing here handles a signal or touches asyncio, and nothing knows what the module
computes: the policy and a critic are two modules in two engines.
"""

import ctypes
import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import nn

from configs.training import DeepSpeedConfig, OptimizerConfig
from learner.training.ranks import Ranks, join_process_group, leave_process_group

REDUCE_BUCKET = 2**24
"""Elements that ZeRO reduces at once; its default would hold 2 GB of buffers."""
PERSISTENT = 100_000
"""Elements of the largest parameters that ZeRO-3 leaves whole on every rank: norms and biases, not worth a message."""


@dataclass(frozen=True)
class StepResult:
    """Says what an optimiser step did."""

    applied: bool
    """False where gradients were not finite: weights, moments and learning rate are as before."""
    grad_norm: float
    """Norm of all gradients, before clipping; infinite where not applied."""
    learning_rate: float
    """That the step used."""


class TrainingEngine[M: nn.Module]:
    """Module, optimiser and learning-rate schedule, in one DeepSpeed engine of all ranks."""

    def __init__(
        self,
        module: M,
        dtype: torch.dtype,
        optimizer: OptimizerConfig,
        deepspeed: DeepSpeedConfig,
        total_steps: int,
        tag: str,
    ) -> None:
        """Builds the engine.

        Args:
            module: all its parameters have the dtype of the forward pass (`runtime.compute`).
            dtype: to which weights are rounded after every step.
            total_steps: optimiser steps of the whole run; warm-up must fit in.
            tag: name of this engine's part of a checkpoint.

        Raises ValueError for a warm-up longer than the run.
        """
        if optimizer.warmup_steps > total_steps:
            raise ValueError(
                f"the {tag}'s optimizer.warmup_steps is {optimizer.warmup_steps}, more than the run's {total_steps} steps"
            )
        self._owns_process_group = join_process_group()
        self._ranks = Ranks().count
        # Imported once the accelerator is chosen: DeepSpeed warns, and guesses, where it has to find it by itself.
        import deepspeed as ds

        # DeepSpeed would compile a shared-memory kernel for the ranks of one host, and run the compiler to see what it
        # could build. Ranks on CPUs talk through gloo alone, so no kernel is on offer and no compiler is needed.
        ds.ops.__compatible_ops__ = {}
        # It calls collectives by names that PyTorch will drop, at every step: nothing that a user could fix.
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed\.c10d_logger")
        if not torch.cuda.is_available():
            # Costs next to nothing on a CPU, and makes a run repeatable to the bit.
            torch.use_deterministic_algorithms(True)
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        self._dtype = dtype
        self._tag = tag
        self._optimizer = optimizer
        factor = learning_rate_factor(optimizer, total_steps)
        compute = next(module.parameters()).dtype
        settings = _engine_config(optimizer, deepspeed, compute)
        if deepspeed.zero_stage == 3:
            _partition(module, settings)
        self._engine, *_ = ds.initialize(
            model=module,
            model_parameters=[parameter for parameter in module.parameters() if parameter.requires_grad],
            config=settings,
            lr_scheduler=lambda inner: torch.optim.lr_scheduler.LambdaLR(inner, factor),
            dist_init_required=False,
        )
        self.device: torch.device = self._engine.device
        # Gradients of ZeRO's higher stages, and bfloat16 ones, are summed in tensors of DeepSpeed's own.
        self._sums_in_place = self.device.type == "cpu" and deepspeed.zero_stage <= 1 and compute == torch.float32
        if self._sums_in_place:
            for layer in module.modules():
                if isinstance(layer, nn.Embedding):
                    # Its gradient then has the tokens' rows alone, and needs no matrix of the whole vocabulary.
                    layer.sparse = True

    @property
    def module(self) -> M:
        """Returns the module; under ZeRO-3 its parameters are empty outside of a forward pass."""
        return self._engine.module

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Returns the module's forward pass on inputs on `device`.

        With gradient unless called under `torch.no_grad()`.
        """
        return self._engine(*inputs)

    def backward(self, loss: torch.Tensor) -> None:
        """Adds the gradient of `loss` (scalar), summed over the ranks, to what the next step applies.

        Every rank calls this equally often between two steps, and as often as it passes forward with gradient.
        """
        if self._sums_in_place:
            _lay_out_gradients([parameter for parameter in self.module.parameters() if parameter.requires_grad])
        # DeepSpeed takes the mean over the ranks.
        self._engine.backward(loss * self._ranks, scale_wrt_gas=False)

    def step(self) -> StepResult:
        """Applies the gradients accumulated since the last step, clipped by their norm, and clears them.

        Gradients that are not finite are dropped instead.
        """
        learning_rate = self._engine.get_lr()[0]
        if self.device.type == "cpu":
            # The step copies the gradients into one piece of memory, which would come on top of what the C library still
            # holds of the activations.
            ctypes.CDLL(None).malloc_trim(0)
        self._engine.step()
        applied = self._engine.was_step_applied()
        norm = self._engine.get_global_grad_norm()
        self._round_weights()
        return StepResult(applied=applied, grad_norm=float(norm), learning_rate=learning_rate)

    def save(self, folder: Path) -> None:
        """Writes everything that training continues from: module, optimiser, schedule, random state."""
        state = {"cpu_rng": torch.get_rng_state()}
        if self.device.type == "cuda":
            state["cuda_rng"] = torch.cuda.get_rng_state(self.device)
        self._engine.save_checkpoint(str(folder), tag=self._tag, client_state=state)

    def load(self, folder: Path) -> None:
        """Continues from what `save` wrote, with the optimiser's settings that this engine was made with.

        DeepSpeed unpickles it, so `folder` must be the run's own. Raises FileNotFoundError where there is none.
        """
        if not (folder / self._tag).is_dir():
            raise FileNotFoundError(f"no checkpoint of the {self._tag} in {folder}")
        _, state = self._engine.load_checkpoint(str(folder), tag=self._tag)
        self._apply_settings()
        self._round_weights()
        torch.set_rng_state(state["cpu_rng"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"], self.device)

    def state_digests(self) -> dict[str, str]:
        """Returns digests of this rank's part of the optimiser's state: `master` weights, `exp_avg`, `exp_avg_sq`, `step`.

        Empty before the first step. Reads 12 bytes a parameter over the number of ranks, on a GPU through the host.
        """
        digests: dict[str, xxhash.xxh3_128] = {}
        # Under every ZeRO stage AdamW's parameters are this rank's parts of the master weights.
        for master, moments in self._engine.optimizer.optimizer.state.items():
            for name, tensor in {"master": master, **moments}.items():
                data = tensor.detach().cpu().reshape(-1).view(torch.uint8)
                digests.setdefault(name, xxhash.xxh3_128()).update(data.numpy())
        return {name: digest.hexdigest() for name, digest in digests.items()}

    def close(self) -> None:
        """Ends the engine, and the process group if this engine made it: of several, close the first one last.

        DeepSpeed holds on to some of its tensors, and to all of ZeRO-3's, until the process ends.
        """
        self._engine.destroy()
        if self._owns_process_group:
            leave_process_group()

    def _apply_settings(self) -> None:
        """Gives the optimiser this engine's own settings: a checkpoint brings back those that it was written under."""
        settings, schedule = self._optimizer, self._engine.lr_scheduler
        schedule.base_lrs = [settings.lr for _ in schedule.base_lrs]
        self._engine.optimizer.clip_grad = settings.max_grad_norm
        for group, factor in zip(self._engine.optimizer.param_groups, schedule.lr_lambdas, strict=True):
            group["initial_lr"] = settings.lr
            group["lr"] = settings.lr * factor(schedule.last_epoch)
            group["betas"] = settings.betas
            group["eps"] = settings.eps
            group["weight_decay"] = settings.weight_decay

    def _round_weights(self) -> None:
        """Leaves the forward pass the weights that are published, whatever type it computes in.

        The optimiser's float32 master weights are another copy and keep what rounding takes: with finer weights the
        forward pass would be another policy than the engine's, whose sub-rounding updates the engine never sees.
        """
        import deepspeed as ds

        for parameter in self.module.parameters():
            if parameter.dtype != self._dtype:
                with ds.zero.GatheredParameters([parameter], modifier_rank=0), torch.no_grad():
                    parameter.copy_(parameter.to(self._dtype))


def prepare_to_train(model: Any, deepspeed: DeepSpeedConfig) -> None:
    """Makes a transformers model the same function on every pass: no dropout; checkpoints its gradients if asked to.

    Attention of this process is no longer cuDNN's, which compiles a plan for every new shape, and almost every micro-batch
    has one: on an H200 that took half of a step's time. Flash attention has no plans.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)
    modules: Iterable[Any] = model.modules()
    for module in modules:
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    if deepspeed.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    # Only while training does transformers checkpoint gradients, and without dropout the two modes agree.
    model.train()


def _partition(module: nn.Module, settings: dict[str, Any]) -> None:
    """Moves the module's parameters to this rank's device one by one, of each this rank's part alone, as ZeRO-3 wants it.

    `deepspeed.initialize` would first move the whole module there: 61 GiB of a model of 32 billion parameters.
    """
    import deepspeed as ds

    accelerator = ds.accelerator.get_accelerator()
    ds.init_distributed(accelerator.communication_backend_name(), dist_init_required=False)
    ds.zero.Init(module=module, config_dict_or_path=settings)
    for buffer in module.buffers():
        buffer.data = buffer.data.to(accelerator.current_device_name())


def _lay_out_gradients(parameters: list[nn.Parameter]) -> None:
    """Gives the parameters that have none gradients of zero, to which the backward pass adds, in one piece of memory.

    One by one they would be made amid the activations that the pass frees, and leave holes too small for the next ones.
    """
    missing = [parameter for parameter in parameters if parameter.grad is None]
    sizes = [parameter.numel() for parameter in missing]
    for parameter, gradient in zip(missing, torch.zeros(sum(sizes)).split(sizes), strict=True):
        parameter.grad = gradient.view_as(parameter)


def learning_rate_factor(optimizer: OptimizerConfig, total_steps: int) -> Callable[[int], float]:
    """Returns the learning rate's factor by the number of steps done: up to 1 in the warm-up, then as the schedule says."""
    warmup = optimizer.warmup_steps

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        # The last step (total_steps - 1) still moves the weights.
        progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
        match optimizer.schedule:
            case "constant":
                return 1.0
            case "linear":
                return 1.0 - progress
            case "cosine":
                return 0.5 * (1.0 + math.cos(math.pi * progress))

    return factor


def _engine_config(optimizer: OptimizerConfig, deepspeed: DeepSpeedConfig, compute: torch.dtype) -> dict[str, Any]:
    """Returns DeepSpeed's configuration: the caller scales the losses, and steps after any number of micro-batches."""
    cuda = torch.cuda.is_available()
    zero: dict[str, Any] = {
        # Stage 0 would sum bfloat16 gradients in bfloat16 and check nothing for infinity. On one rank stage 1 splits
        # nothing either.
        "stage": max(1, deepspeed.zero_stage),
        # ZeRO-3 fetches the next modules' parameters while one computes. The lower stages may not, where the caller decides
        # when to step.
        "overlap_comm": deepspeed.zero_stage == 3,
        # Gathering gradients in one buffer spares a GPU's allocator holes; on a CPU it is more copies of them.
        "contiguous_gradients": cuda,
        "stage3_param_persistence_threshold": PERSISTENT,
        "reduce_bucket_size": REDUCE_BUCKET,
        "allgather_bucket_size": REDUCE_BUCKET,
    }
    if deepspeed.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": cuda}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": optimizer.max_grad_norm,
        "steps_per_print": None,
        # PyTorch's AdamW, also for an optimiser on the host: DeepSpeed's own would have to be compiled.
        "zero_force_ds_cpu_optimizer": False,
        "optimizer": {
            "type": "AdamW",
            "params": {
                "torch_adam": True,
                # Fewer passes, and no temporaries as large as master weights and moments.
                "fused": True,
                "lr": optimizer.lr,
                "betas": list(optimizer.betas),
                "eps": optimizer.eps,
                "weight_decay": optimizer.weight_decay,
            },
        },
        "zero_optimization": zero,
        "bf16": {"enabled": compute == torch.bfloat16},
        "data_types": {"grad_accum_dtype": "fp32"},
        # Sums over ranks lose nothing: another number of ranks gives the same gradient.
        "communication_data_type": "fp32",
    }
