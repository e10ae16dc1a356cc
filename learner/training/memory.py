"""What a learner needs of memory and disk, computed from the shape of its model, and what would make it fit.

Memory of a rank is counted as

    weights   parameters x bytes of the type that is computed in      shared out by ZeRO-3
    gradients parameters x 4 (their sum over micro-batches)           shared out by ZeRO-2 and 3
              parameters x 2 (one micro-batch's, where in bfloat16)   ZeRO-1 alone keeps them, where nothing is offloaded
    optimiser parameters x 12 (master weights, two moments)           shared out by every stage; on the host if offloaded
    gathered  weights of ZeRO-3 that other ranks hold, as many as DeepSpeed keeps at once, and one gradient of the head

for the policy, once more for a critic; a reference has weights alone, whole on every rank. Activations are counted as
transformers' Llama and Qwen2 keep them for the backward pass, and logits at their peak; other models differ. On one GPU all
of it was within 3 % of what PyTorch allocated (docs/results/gpu.md); what is gathered was not measured on several.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from configs.schema import RunConfig
from runtime.words import counted

GIB = 2**30
LOGIT_BYTES = 16
"""Bytes for each element of a chunk of logits: itself, its log-probability, both gradients (`learner.training.policy`)."""
MOST_GATHERED = 10**9
"""Parameters that ZeRO-3 holds whole at once: DeepSpeed's `stage3_max_live_parameters`."""
COMFORTABLE = 0.92
"""Share of a rank's memory that may be planned: CUDA, NCCL and the allocator's holes take some."""
TOO_MUCH = 1.1
"""Share of it from which a plan is refused: below, a model whose activations are estimated too high may still fit."""
MOST_RANKS = 1024


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
class Need:
    """Holds the bytes that a rank needs."""

    state: int
    """Weights, gradients, optimiser."""
    activations: int
    """Of one micro-batch, with its logits and with what is gathered of other ranks' weights."""
    host: int
    """Optimiser that lies in the host's memory instead."""

    @property
    def total(self) -> int:
        """Returns the bytes that lie where the rank computes."""
        return self.state + self.activations

    def fits(self, machine: Machine) -> bool:
        """Returns whether a rank on `machine` has room to spare for it."""
        return self.total <= COMFORTABLE * machine.memory

    def exceeds(self, machine: Machine) -> bool:
        """Returns whether it is certain that a rank on `machine` has too little."""
        return self.state > machine.memory or self.total > TOO_MUCH * machine.memory


def learner_need(config: RunConfig, shape: Shape, ranks: int, *, cuda: bool) -> Need:
    """Returns what one of `ranks` ranks needs."""
    state, host = learner_state(config, shape, ranks, cuda=cuda)
    activations = learner_activations(config, shape, cuda=cuda) + gathered_bytes(config, shape, ranks, cuda=cuda)
    return Need(state, activations, host)


def learner_state(config: RunConfig, shape: Shape, ranks: int, *, cuda: bool) -> tuple[int, int]:
    """Returns the bytes of weights, gradients and optimiser of one rank, and those of them that lie on the host instead."""
    learner = config.learner
    stage = max(1, learner.deepspeed.zero_stage)
    width = compute_bytes(config, cuda=cuda)
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
    tokens = max(deepspeed.micro_batch_tokens, longest(config))
    width = compute_bytes(config, cuda=cuda)
    layer = tokens * layer_bytes(shape, width)
    kept = (
        layer + tokens * width * shape.hidden * shape.layers
        if deepspeed.gradient_checkpointing
        else layer * shape.layers
    )
    return kept + LOGIT_BYTES * min(MAX_LOGITS, tokens * shape.vocabulary)


def gathered_bytes(config: RunConfig, shape: Shape, ranks: int, *, cuda: bool) -> int:
    """Returns the bytes that ZeRO-3 holds of other ranks' weights at most, and of the largest parameter's gradient."""
    if config.learner.deepspeed.zero_stage < 3 or ranks == 1:
        return 0
    width = compute_bytes(config, cuda=cuda)
    return width * (min(shape.parameters, MOST_GATHERED) + shape.vocabulary * shape.hidden)


def layer_bytes(shape: Shape, width: int) -> int:
    """Returns the bytes that one layer keeps of one token for the backward pass, with numbers of `width` bytes.

    Both norms keep their input in float32, what they scale, and their result, which the projections share; attention keeps
    queries, keys, values, its result and, in float32, a sum for each head; the feed-forward part keeps its gate before and
    after the activation, the other projection, and their product. Attention's weights are never stored.
    """
    norms = 2 * (4 + 2 * width) * shape.hidden + 2 * 4
    attention = 2 * width * (shape.heads + shape.key_value_heads) * shape.head + 4 * shape.heads
    return norms + attention + 4 * width * shape.intermediate


def checkpoint_bytes(config: RunConfig, shape: Shape, *, cuda: bool) -> int:
    """Returns the bytes of one checkpoint on disk, of all ranks together: the optimiser and, below ZeRO-3, the weights."""
    weights = compute_bytes(config, cuda=cuda) if config.learner.deepspeed.zero_stage < 3 else 0
    models = 2 if config.learner.algorithm.has_critic else 1
    return models * (12 + weights) * shape.parameters


def image_bytes(config: RunConfig, shape: Shape) -> int:
    """Returns the bytes of one version of the weights, as they are published."""
    return shape.parameters * (4 if config.model.dtype == "float32" else 2)


def longest(config: RunConfig) -> int:
    """Returns the tokens of the longest trajectory."""
    return config.rollout.max_prompt_tokens + config.rollout.max_response_tokens


def compute_bytes(config: RunConfig, *, cuda: bool) -> int:
    """Returns the bytes of a number that is computed with.

    Returns those of float32 where only a measurement on the machine will tell.
    """
    chosen = config.model.compute_dtype
    if chosen == "auto":
        chosen = config.model.dtype if cuda else "float32"
    return 2 if chosen == "bfloat16" else 4


def what_fits(config: RunConfig, shape: Shape, ranks: int, machine: Machine) -> str:
    """Returns what to change until a rank on `machine` has the memory, the least costly first; checked by the same numbers.

    Where ranks are what is missing, it names how many suffice, and the optimiser's offload where that suffices as well.
    """
    steps: list[str] = []

    def need(config: RunConfig, ranks: int) -> Need:
        return learner_need(config, shape, ranks, cuda=machine.cuda)

    for what, changed in _savings(config):
        # What saves nothing, on these ranks or on more, is no advice.
        if any(need(changed, count).total < need(config, count).total for count in (ranks, MOST_RANKS)):
            config = changed
            steps.append(what)
        if need(config, ranks).fits(machine):
            return ", and ".join(steps)
    ways: list[str] = []
    if (enough := _enough_ranks(config, shape, ranks, machine)) is not None:
        ways.append(f"start {enough} ranks or more (`--ranks {enough}`)")
    offloaded = need(_with(config, offload_optimizer=True), ranks)
    if machine.cuda and offloaded.fits(machine):
        host = offloaded.host / GIB
        ways.append(f"set learner.deepspeed.offload_optimizer ({host:.0f} GiB of the host's memory for each rank)")
    if not ways:
        return "no number of ranks is enough: shorten rollout.max_response_tokens, or take a smaller model"
    return ", and ".join([*steps, " or ".join(ways)])


def _savings(config: RunConfig) -> Iterator[tuple[str, RunConfig]]:
    """Yields what saves memory on the same ranks and how to say it, each on top of those before."""
    if not config.learner.deepspeed.gradient_checkpointing:
        config = _with(config, gradient_checkpointing=True)
        yield "set learner.deepspeed.gradient_checkpointing", config
    if config.learner.deepspeed.micro_batch_tokens > longest(config):
        config = _with(config, micro_batch_tokens=longest(config))
        yield f"lower learner.deepspeed.micro_batch_tokens to {longest(config)}", config
    if config.learner.deepspeed.zero_stage < 3:
        yield "set learner.deepspeed.zero_stage to 3", _with(config, zero_stage=3)


def _enough_ranks(config: RunConfig, shape: Shape, ranks: int, machine: Machine) -> int | None:
    """Returns the least number of ranks, more than `ranks`, that fit; None where no number does."""
    for more in range(ranks + 1, MOST_RANKS + 1):
        if learner_need(config, shape, more, cuda=machine.cuda).fits(machine):
            return more
    return None


def _with(config: RunConfig, **deepspeed: object) -> RunConfig:
    settings = config.learner.deepspeed.model_copy(update=deepspeed)
    return config.model_copy(update={"learner": config.learner.model_copy(update={"deepspeed": settings})})


def too_large(config: RunConfig, shape: Shape, ranks: int, machine: Machine) -> str:
    """Returns the sentence that says how much too large the learner is, and what would make it fit."""
    need = learner_need(config, shape, ranks, cuda=machine.cuda)
    return (
        f"the learner needs {need.state / GIB:.1f} GiB of state and about {need.activations / GIB:.1f} GiB of activations "
        f"on each of {counted(ranks, 'rank')}, a rank has {machine.memory / GIB:.1f} GiB: "
        + what_fits(config, shape, ranks, machine)
    )
