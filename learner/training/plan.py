"""Plans in numbers what a configuration asks of model and machine, before anything is loaded.

`zerotir config NAME --check` prints the plan; the roles refuse what cannot work, by name. Memory of the learner is counted
as

    weights   parameters x bytes of the type that is computed in      shared out by ZeRO-3
    gradients parameters x 4 (their sum over micro-batches)           shared out by ZeRO-2 and 3
              parameters x 2 (one micro-batch's, where in bfloat16)   ZeRO-1 alone keeps them, where nothing is offloaded
    optimiser parameters x 12 (master weights, two moments)           shared out by every stage; on the host if offloaded

for the policy, once more for a critic; a reference has weights alone, whole on every rank. This part is exact but for
buffers, so a rank that has less memory is refused. Activations are counted as transformers' Llama and Qwen2 keep them for
the backward pass, and logits at their peak; other models differ, so this part is only a warning.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.errors import UserError
from configs.schema import RunConfig
from runtime.model_files import require_supported, skeleton
from runtime.models import ModelError
from runtime.words import counted

GIB = 2**30
LOGIT_BYTES = 16
"""Bytes for each element of a chunk of logits: itself, its log-probability, both gradients (`learner.training.policy`)."""


class PlanError(UserError):
    """The configuration cannot run as it is; the text names fields and numbers."""


@dataclass(frozen=True)
class Shape:
    """Holds the numbers of a model that decide what it needs."""

    parameters: int
    """Tied ones once."""
    positions: int
    """Longest sequence that it is made for."""
    vocabulary: int
    layers: int
    hidden: int
    intermediate: int
    """Width of a layer's feed-forward part."""
    heads: int
    key_value_heads: int
    head: int
    """Width of one head."""

    @property
    def cache_numbers(self) -> int:
        """Returns the keys and values of one token, in numbers."""
        return 2 * self.layers * self.key_value_heads * self.head


@dataclass(frozen=True)
class Machine:
    """Says what a rank of the learner has."""

    cuda: bool
    memory: int
    """Bytes for one rank."""


@dataclass(frozen=True)
class Plan:
    """Holds the lines to print; `faults` make the configuration impossible, `doubts` may."""

    lines: list[tuple[str, str]]
    faults: list[str]
    doubts: list[str]

    def __str__(self) -> str:
        shown = [f"  {name:<10} {text}" for name, text in self.lines]
        shown += [f"  DOUBTFUL   {doubt}" for doubt in self.doubts]
        shown += [f"  CANNOT RUN {fault}" for fault in self.faults]
        return "\n".join(shown)


def read_shape(path: str) -> Shape:
    """Reads the configuration of a model's folder or Hugging Face name; of the latter no weights are fetched.

    Raises ModelError where it cannot be had, or where the model is not supported.
    """
    from learner.training.ranks import choose_accelerator

    choose_accelerator()
    model = skeleton(path)
    require_supported(model)
    text = model.config.get_text_config()
    heads = text.num_attention_heads
    return Shape(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        positions=_positions_of(model),
        vocabulary=text.vocab_size,
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        intermediate=text.intermediate_size,
        heads=heads,
        key_value_heads=getattr(text, "num_key_value_heads", None) or heads,
        head=getattr(text, "head_dim", None) or text.hidden_size // heads,
    )


def this_machine() -> Machine:
    """Returns the first GPU's memory, or this host's shared out among the ranks that it runs."""
    import torch

    if torch.cuda.is_available():
        return Machine(cuda=True, memory=torch.cuda.get_device_properties(0).total_memory)
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Machine(cuda=False, memory=whole // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def make_plan(config: RunConfig, shape: Shape, ranks: int, machine: Machine) -> Plan:
    """Returns the plan for a learner of `ranks` ranks, all on machines like `machine`."""
    state, host = learner_state(config, shape, ranks, cuda=machine.cuda)
    activations = learner_activations(config, shape, cuda=machine.cuda)
    faults, doubts = _positions(config, shape.positions), []
    memory = f"{state / GIB:.1f} GiB of state a rank, about {activations / GIB:.1f} GiB of activations"
    if host:
        memory += f", {host / GIB:.1f} GiB on the host"
    memory += f"; a rank has {machine.memory / GIB:.1f} GiB"
    if state > machine.memory:
        faults.append(_too_large(config, state, ranks, machine))
    elif state + activations > machine.memory:
        doubts.append(
            f"the learner's state and activations may be more than the {machine.memory / GIB:.1f} GiB of a rank: "
            + _less_memory(config)
        )
    stage = f", ZeRO {max(1, config.learner.deepspeed.zero_stage)}" if ranks > 1 else ""
    lines = [
        (
            "model",
            f"{config.model.path}: {shape.parameters / 1e6:,.1f} million parameters, {shape.positions:,} positions; "
            f"prompt and response take up to {_longest(config):,}",
        ),
        ("learner", f"{counted(ranks, 'rank')}{stage}: {memory}"),
        *_step_lines(config),
        ("actor", _actor_line(config, shape)),
        (
            "bus",
            f"messages of up to {config.largest_message_bytes / 2**20:.1f} MiB, the longest result or a part of the weights "
            "(others' servers need that `max_payload`)",
        ),
    ]
    return Plan(lines, faults, doubts)


def _step_lines(config: RunConfig) -> list[tuple[str, str]]:
    learner = config.learner
    batch = learner.batch_groups * learner.group_size
    updates = counted(learner.algorithm.minibatches, "update") + " of the policy"
    if learner.algorithm.has_critic:
        updates += f", {learner.critic.minibatches} of the critic"
    return [
        (
            "step",
            f"{learner.batch_groups} problems x {learner.group_size} samples = {batch:,} trajectories, up to "
            f"{batch * _longest(config):,} tokens in micro-batches of {learner.deepspeed.micro_batch_tokens:,}; {updates}",
        ),
        (
            "staleness",
            f"at most {counted(learner.max_staleness, 'version')}: up to {(learner.max_staleness + 1) * batch:,} tickets "
            "open",
        ),
    ]


def _actor_line(config: RunConfig, shape: Shape) -> str:
    engine = config.actor.engine
    width = 2 if config.model.dtype != "float32" else 4
    token = shape.cache_numbers * width
    slots = min(config.actor.max_rollouts, engine.max_running)
    return (
        f"{shape.parameters * width / engine.tensor_parallel / GIB:.1f} GiB of weights on each of "
        f"{counted(engine.tensor_parallel, 'device')}, {token / 1024:.1f} KiB of cache a token: {slots} responses at once "
        f"take up to {slots * _longest(config) * token / GIB:.1f} GiB, fewer are admitted where there is less"
    )


def _longest(config: RunConfig) -> int:
    return config.rollout.max_prompt_tokens + config.rollout.max_response_tokens


def show_plan(config: RunConfig, ranks: int, gpu_memory_gib: float | None) -> int:
    """Prints the plan for GPUs of so much memory, else for this machine; returns the exit status."""
    from runtime.models import PREPARED, model_folder

    path = config.model.path
    shape = read_shape(str(model_folder(path)) if path in PREPARED else str(Path(path).expanduser()))
    machine = this_machine() if gpu_memory_gib is None else Machine(cuda=True, memory=int(gpu_memory_gib * GIB))
    plan = make_plan(config, shape, ranks, machine)
    sys.stdout.write(f"plan of {config.name}\n{plan}\n")
    return 2 if plan.faults else 0


def require_model(config: RunConfig, folder: Path) -> None:
    """Refuses what no engine could run of the model in `folder`; reads its configuration alone.

    Raises ModelError for a kind of model that is not supported, PlanError where prompt and response are longer than its
    positions.
    """
    model = skeleton(folder)
    require_supported(model)
    if faults := _positions(config, _positions_of(model)):
        raise PlanError(faults[0])


def _positions_of(model: Any) -> int:
    """Returns how many positions a model is made for. Raises ModelError where its configuration does not say."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(positions, int) or positions < 1:
        raise ModelError(f"{type(model).__name__} does not say how many positions it has: it is not supported")
    return positions


def require_memory(config: RunConfig, model: Path, ranks: int) -> None:
    """Raises PlanError where a rank's state alone, without activations, is larger than this machine has for it."""
    shape, machine = read_shape(str(model)), this_machine()
    state, _ = learner_state(config, shape, ranks, cuda=machine.cuda)
    if state > machine.memory:
        raise PlanError(_too_large(config, state, ranks, machine))


def learner_state(config: RunConfig, shape: Shape, ranks: int, *, cuda: bool) -> tuple[int, int]:
    """Returns the bytes of weights, gradients and optimiser of one rank, and those of them that lie on the host instead."""
    learner = config.learner
    stage = max(1, learner.deepspeed.zero_stage)
    width = _compute_bytes(config, cuda=cuda)
    weights = width * shape.parameters // (ranks if stage == 3 else 1)
    gradients = 4 * shape.parameters // (ranks if stage >= 2 else 1)
    offloaded = learner.deepspeed.offload_optimizer and cuda
    if stage == 1 and width == 2 and not offloaded:
        gradients += 2 * shape.parameters
    optimiser = 12 * shape.parameters // ranks
    models = 2 if learner.algorithm.has_critic else 1
    reference = width * shape.parameters if learner.algorithm.kl_coefficient else 0
    state = models * (weights + gradients) + reference
    if offloaded:
        return state, models * optimiser
    return state + models * optimiser, 0


def learner_activations(config: RunConfig, shape: Shape, *, cuda: bool) -> int:
    """Estimates the bytes of one micro-batch's activations and logits. They grow with its tokens and with the layers."""
    from learner.training.policy import MAX_LOGITS

    deepspeed = config.learner.deepspeed
    # A trajectory is never cut.
    tokens = max(deepspeed.micro_batch_tokens, _longest(config))
    width = _compute_bytes(config, cuda=cuda)
    layer = tokens * layer_bytes(shape, width)
    kept = (
        layer + tokens * width * shape.hidden * shape.layers
        if deepspeed.gradient_checkpointing
        else layer * shape.layers
    )
    return kept + LOGIT_BYTES * min(MAX_LOGITS, tokens * shape.vocabulary)


def layer_bytes(shape: Shape, width: int) -> int:
    """Returns the bytes that one layer keeps of one token for the backward pass, with numbers of `width` bytes.

    Both norms keep their input in float32, what they scale, and their result, which the projections share; attention keeps
    queries, keys, values, its result and, in float32, a sum for each head; the feed-forward part keeps its gate before and
    after the activation, the other projection, and their product. Attention's weights are never stored.
    """
    norms = 2 * (4 + 2 * width) * shape.hidden + 2 * 4
    attention = 2 * width * (shape.heads + shape.key_value_heads) * shape.head + 4 * shape.heads
    return norms + attention + 4 * width * shape.intermediate


def _compute_bytes(config: RunConfig, *, cuda: bool) -> int:
    """Returns the bytes of a number that is computed with.

    Returns those of float32 where only a measurement on the machine will tell.
    """
    chosen = config.model.compute_dtype
    if chosen == "auto":
        chosen = config.model.dtype if cuda else "float32"
    return 2 if chosen == "bfloat16" else 4


def _positions(config: RunConfig, positions: int) -> list[str]:
    if _longest(config) <= positions:
        return []
    return [
        f"rollout.max_prompt_tokens + rollout.max_response_tokens is {_longest(config):,}, but {config.model.path} is made "
        f"for {positions:,} positions: shorten them, or take a model with more"
    ]


def _less_memory(config: RunConfig) -> str:
    deepspeed = config.learner.deepspeed
    ways = ["start more ranks (`--ranks N`)"]
    if not deepspeed.gradient_checkpointing:
        ways.insert(0, "set learner.deepspeed.gradient_checkpointing")
    if deepspeed.micro_batch_tokens > _longest(config):
        ways.insert(0, "lower learner.deepspeed.micro_batch_tokens")
    return ", or ".join(ways)


def _too_large(config: RunConfig, state: int, ranks: int, machine: Machine) -> str:
    deepspeed = config.learner.deepspeed
    advice = "start more ranks (`--ranks N`)"
    if deepspeed.zero_stage != 3:
        advice = f"set learner.deepspeed.zero_stage to 3 and {advice}"
    if machine.cuda and not deepspeed.offload_optimizer:
        advice += ", or set learner.deepspeed.offload_optimizer"
    return (
        f"the learner's state is {state / GIB:.1f} GiB on each of {counted(ranks, 'rank')}, a rank has "
        f"{machine.memory / GIB:.1f} GiB: {advice}"
    )
