"""The training engine's part of the schema: optimisers, critic, DeepSpeed, checkpoints."""

from typing import Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from configs.section import Fraction, Section


class OptimizerConfig(Section):
    """AdamW."""

    lr: PositiveFloat = 1e-6
    """Learning rate."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    """Decay of the two moments."""
    eps: PositiveFloat = 1e-8
    """Added to the root of the second moment."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Learning rate after the warm-up: constant, or falling to 0 at the end of the run, straight or as half a cosine."""
    warmup_steps: NonNegativeInt = 0
    """Optimiser steps over which the learning rate rises linearly."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients are clipped to this norm."""


class CriticOptimizerConfig(OptimizerConfig):
    """AdamW of the critic, with PyTorch's meaning of each field."""

    lr: PositiveFloat = 5e-6
    """Peak learning rate."""


class CriticConfig(Section):
    """The critic, a model like the policy with one value for each token; only with the advantages `gae` and `vtrace`."""

    optimizer: CriticOptimizerConfig = CriticOptimizerConfig()
    minibatches: PositiveInt = 12
    """Optimiser steps per batch; each trajectory is in one."""
    value_clip: PositiveFloat | None = 0.2
    """How far a value may move from what it was when the batch was formed before its gradient stops; null for no bound."""
    frozen_policy_steps: NonNegativeInt = 0
    """First training steps in which only the critic learns."""


class DeepSpeedConfig(Section):
    """The training engine."""

    zero_stage: Literal[0, 1, 2, 3] = 1
    """ZeRO stage; 0 runs as 1, which alone keeps float32 gradients and checks them for infinity."""
    micro_batch_tokens: PositiveInt = 4096
    """Tokens, padding included, of one forward and backward pass."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass to save memory."""
    offload_optimizer: bool = False
    """Keep the master weights and moments in host memory, and step there."""


class CheckpointConfig(Section):
    """Says what survives the learner."""

    every: PositiveInt = 10
    """Steps between checkpoints; the last step always writes one."""
    keep: PositiveInt = 2
    """Newest checkpoints that are kept."""
    best: str | None = None
    """Name of a metric of the learner, such as `accuracy`: the checkpoint of the step with its highest value is kept as
    well."""
