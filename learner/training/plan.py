"""Plans in numbers what a configuration asks of model and machine, before anything is loaded.

`zerotir config NAME --check` prints the plan; the roles refuse what cannot work, by name. How memory is counted:
`learner.training.memory`.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.errors import UserError
from configs.schema import RunConfig
from learner.training.memory import (
    GIB,
    Machine,
    Shape,
    checkpoint_bytes,
    image_bytes,
    learner_need,
    longest,
    too_large,
)
from runtime.model_files import require_supported, skeleton
from runtime.models import ModelError
from runtime.words import counted

NETWORK_BYTES_PER_S = 1.25e9
"""Of 10 Gbit/s."""


class PlanError(UserError):
    """The configuration cannot run as it is; the text names fields and numbers."""


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
    need = learner_need(config, shape, ranks, cuda=machine.cuda)
    faults, doubts = _positions(config, shape.positions), []
    memory = f"{need.state / GIB:.1f} GiB of state a rank, about {need.activations / GIB:.1f} GiB of activations"
    if need.host:
        memory += f", {need.host / GIB:.1f} GiB on the host"
    memory += f"; a rank has {machine.memory / GIB:.1f} GiB"
    if need.exceeds(machine):
        faults.append(too_large(config, shape, ranks, machine))
    elif not need.fits(machine):
        doubts.append(too_large(config, shape, ranks, machine))
    stage = f", ZeRO {max(1, config.learner.deepspeed.zero_stage)}" if ranks > 1 else ""
    lines = [
        (
            "model",
            f"{config.model.path}: {shape.parameters / 1e6:,.1f} million parameters, {shape.positions:,} positions; "
            f"prompt and response take up to {longest(config):,}",
        ),
        ("learner", f"{counted(ranks, 'rank')}{stage}: {memory}"),
        *_step_lines(config),
        ("actor", _actor_line(config, shape)),
        *_weights_lines(config, shape),
        ("disk", _disk_line(config, shape, cuda=machine.cuda)),
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
            f"{batch * longest(config):,} tokens in micro-batches of {learner.deepspeed.micro_batch_tokens:,}; {updates}",
        ),
        (
            "staleness",
            f"at most {counted(learner.max_staleness, 'version')}: up to {(learner.max_staleness + 1) * batch:,} tickets "
            "open",
        ),
    ]


def _actor_line(config: RunConfig, shape: Shape) -> str:
    engine = config.actor.engine
    token = shape.cache_numbers * (4 if config.model.dtype == "float32" else 2)
    slots = min(config.actor.max_rollouts, engine.max_running)
    return (
        f"{image_bytes(config, shape) / engine.tensor_parallel / GIB:.1f} GiB of weights on each of "
        f"{counted(engine.tensor_parallel, 'device')}, {token / 1024:.1f} KiB of cache a token: {slots} responses at once "
        f"take up to {slots * longest(config) * token / GIB:.1f} GiB, fewer are admitted where there is less"
    )


def _weights_lines(config: RunConfig, shape: Shape) -> list[tuple[str, str]]:
    """Returns what the versions of the weights take on the bus, on the network and in host memory."""
    image = image_bytes(config, shape)
    size = image / GIB
    if (location := config.weights.snapshot_location) is None:
        stored = f"up to {4 * size:.1f} GiB on each NATS server, less with weights.snapshot_location"
    else:
        stored = f"snapshots in {location}, up to {2 * size:.1f} GiB of deltas on each NATS server"
    return [
        (
            "weights",
            f"{size:.1f} GiB a version; {stored}; at 10 Gbit/s the first one takes {image / NETWORK_BYTES_PER_S:.0f} s to "
            "one actor, and longer to several from one place",
        ),
        (
            "host",
            f"{2 * size:.1f} GiB for two versions where the learner's first rank is, {3 * size:.1f} GiB while it exports "
            f"the model; {size:.1f} GiB for each actor",
        ),
    ]


def _disk_line(config: RunConfig, shape: Shape, *, cuda: bool) -> str:
    """Returns what the learner keeps on disk at the most: the newest checkpoints, one that is being written, the best."""
    settings = config.learner.checkpoint
    one = checkpoint_bytes(config, shape, cuda=cuda) / GIB
    most = settings.keep + 1 + (settings.best is not None)
    model = image_bytes(config, shape) / GIB
    return (
        f"{one:.1f} GiB a checkpoint, {most * one:.1f} GiB for {most} at once; {model:.1f} GiB for the exported model"
    )


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
    """Raises PlanError where it is certain that this machine has too little memory for a rank; see `Need.exceeds`."""
    shape, machine = read_shape(str(model)), this_machine()
    if learner_need(config, shape, ranks, cuda=machine.cuda).exceeds(machine):
        raise PlanError(too_large(config, shape, ranks, machine))


def _positions(config: RunConfig, positions: int) -> list[str]:
    if longest(config) <= positions:
        return []
    return [
        f"rollout.max_prompt_tokens + rollout.max_response_tokens is {longest(config):,}, but {config.model.path} is made "
        f"for {positions:,} positions: shorten them, or take a model with more"
    ]
