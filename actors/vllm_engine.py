"""The vLLM engine of an actor: its process, its requests, and loads of weights through shared memory."""

import asyncio
import contextlib
import itertools
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import structlog

from actors.engine import Completion, DeadlineError, EngineError, Sampling
from bus.messages import TensorEntry, VersionSpan, WeightVersion
from configs.schema import EngineConfig, ModelConfig
from runtime.compute import compute_dtype

log = structlog.get_logger()

STOP_TIMEOUT_S = 5.0
LOAD_TIMEOUT_S = 300.0
LOOK_EVERY_S = 1.0
"""How often a request is looked at: its seconds of generation are exact to this."""
STALL_TIMEOUT_S = 600.0
"""An engine that samples nothing for so long, with requests to serve and no load under way, hangs."""


class VllmEngine:
    """One `AsyncLLM`, as an `Engine`. Make it with `start`, end it with `stop`."""

    def __init__(self, llm: Any, tokenizer: Any, vllm: Any) -> None:
        self._llm = llm
        self._vllm = vllm
        self._stats = vllm["stats"]
        self._ids = itertools.count()
        self._loading = asyncio.Lock()
        self.tokenizer = tokenizer
        self.version: WeightVersion | None = None
        self.failed = False
        self.generated_tokens = 0
        self._sampled_at = 0.0
        """When something was last seen to be sampled, on the monotonic clock."""
        self.cache_tokens: int = llm.vllm_config.cache_config.kv_cache_size_tokens

    @classmethod
    async def start(cls, folder: Path, model: ModelConfig, config: EngineConfig, max_model_len: int, seed: int) -> Self:
        """Starts the engine process. Raises EngineError when it is not up within `start_timeout_s`."""
        _prepare_environment(config)
        try:
            vllm, llm = await asyncio.wait_for(
                asyncio.to_thread(_make, folder, model, config, max_model_len, seed), config.start_timeout_s
            )
        except TimeoutError as error:
            raise EngineError(
                f"vLLM was not up after {config.start_timeout_s:g} s: see its log lines, or raise "
                "actor.engine.start_timeout_s"
            ) from error
        engine = cls(llm, llm.get_tokenizer(), vllm)
        await llm.init_weight_transfer_engine(vllm["WeightTransferInitRequest"](init_info={}))
        return engine

    @property
    def preemptions(self) -> int:
        """Returns how often vLLM preempted a request."""
        return self._stats.preemptions

    @property
    def cache_use(self) -> float:
        """Returns the share of the cache's blocks that running requests hold."""
        return self._stats.cache_use

    async def generate(self, tokens: list[int], sampling: Sampling) -> Completion:
        """Continues `tokens`, see `Engine.generate`.

        A second counts as one of sampling if a token of this request was sampled in it: what waits in the engine's queue, is
        preempted, or is held for a load of weights has no deadline but the engine's own, `STALL_TIMEOUT_S` without a token
        for anybody.
        """
        called = time.monotonic()
        async with self._loading:
            pass  # What comes during a load waits here, and is asked for under the version that it will run under.
        if self.version is None:
            raise EngineError("no weights loaded yet: an actor never generates with unknown weights")
        vllm = self._vllm
        parameters = vllm["SamplingParams"](
            max_tokens=sampling.max_tokens,
            stop=list(sampling.stop),
            include_stop_str_in_output=True,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            seed=sampling.seed,
            logprobs=0,
            # Stop strings are looked for in the text that the rollout decodes, special tokens included.
            skip_special_tokens=False,
            output_kind=vllm["RequestOutputKind"].FINAL_ONLY,
        )
        # Blocks computed under one version are never reused under another (`actors.cache_salt`).
        prompt = {"prompt_token_ids": list(tokens), "cache_salt": str(self.version)}
        waited = time.monotonic() - called
        id = str(next(self._ids))
        request = asyncio.create_task(self._last_output(prompt, parameters, id))
        sampling.progress.sampled = lambda: self._sampled(id)
        try:
            seconds = await self._watch(request, id, sampling.deadline_s)
            last = request.result()
        except vllm["EngineDeadError"] as error:
            self.failed = True
            raise EngineError(f"the engine died: {error}") from error
        except (vllm["VLLMError"], ValueError) as error:
            raise EngineError(f"the engine refused a request: {error}") from error
        finally:
            sampling.progress.sampled = int
        answer = last.outputs[0] if last else None
        if answer is None or answer.finish_reason not in ("stop", "length") or not answer.token_ids:
            raise EngineError(f"the engine gave a request up ({answer and answer.finish_reason})")
        tokens = list(answer.token_ids)
        self.generated_tokens += len(tokens)
        return Completion(
            tokens=tokens,
            logprobs=[entry[token].logprob for token, entry in zip(tokens, answer.logprobs, strict=True)],
            versions=[
                VersionSpan(version=WeightVersion.parse(span.version), start=span.start, end=span.end)
                for span in answer.weight_versions
            ],
            finish_reason=answer.finish_reason,
            stop=answer.stop_reason if isinstance(answer.stop_reason, str) else None,
            first_token_s=waited + last.metrics.first_token_latency,
            seconds=seconds,
        )

    async def _watch(self, request: asyncio.Task[Any], id: str, deadline_s: float) -> float:
        """Waits for the end of a request and returns its seconds of generation; cancels it where it is not to go on."""
        seconds, sampled = 0.0, 0
        looked_at = asked_at = time.monotonic()
        try:
            while True:
                done, _ = await asyncio.wait({request}, timeout=LOOK_EVERY_S)
                now = time.monotonic()
                before, sampled = sampled, self._sampled(id)
                if done or sampled > before:
                    self._sampled_at = now
                    seconds += now - looked_at
                looked_at = now
                if done:
                    return seconds
                if seconds > deadline_s:
                    raise DeadlineError(sampled)
                if now - max(self._sampled_at, asked_at) > STALL_TIMEOUT_S and not self._loading.locked():
                    self.failed = True
                    raise EngineError(f"the engine hangs: it has sampled nothing for {STALL_TIMEOUT_S:.0f} s")
        finally:
            request.cancel()
            await asyncio.gather(request, return_exceptions=True)

    async def _last_output(self, prompt: dict[str, Any], parameters: Any, id: str) -> Any:
        last = None
        async for output in self._llm.generate(prompt, parameters, request_id=id):
            last = output
        return last

    def _sampled(self, id: str) -> int:
        """Returns how many tokens of a request vLLM's front end has seen so far."""
        processor = self._llm.output_processor
        states = [processor.request_states.get(internal) for internal in processor.external_req_ids.get(id, ())]
        return sum(state.detokenizer.num_output_tokens() for state in states if state is not None)

    async def load(
        self, version: WeightVersion, tensors: Sequence[TensorEntry], path: str, *, recompute: bool = False
    ) -> float:
        """Loads the host copy at `path`, see `Engine.load`."""
        vllm, llm = self._vllm, self._llm
        update = {"path": path, "tensors": [(t.name, t.dtype, list(t.shape), t.offset) for t in tensors]}
        async with self._loading:
            started = time.monotonic()
            try:
                async with asyncio.timeout(LOAD_TIMEOUT_S):
                    await llm.pause_generation(mode="keep", clear_cache=recompute)
                    await llm.start_weight_update()
                    await llm.update_weights(vllm["WeightTransferUpdateRequest"](update_info=update))
                    await llm.finish_weight_update(weight_version=str(version))
                    await llm.resume_generation()
            except asyncio.CancelledError:
                self.failed = True  # left in the middle: nobody knows what the weights are
                raise
            except Exception as error:
                # vLLM passes on whatever a worker raised as a bare Exception.
                self.failed = True
                raise EngineError(f"weights {version} could not be loaded: {error or 'time-out'}") from error
            self.version = version
            self._sampled_at = time.monotonic()
            return self._sampled_at - started

    async def stop(self) -> None:
        """Ends the engine process."""
        if self._llm.output_handler is not None:
            # Or it would report the end of the process as a crash.
            self._llm.output_handler.cancel()
        await asyncio.to_thread(self._llm.shutdown, STOP_TIMEOUT_S)


def _prepare_environment(config: EngineConfig) -> None:
    """Sets the environment variables that vLLM reads when it is imported."""
    defaults = {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "TOKENIZERS_PARALLELISM": "false",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    # A forked process runs no plugins, so it would not end with the actor (`runtime.child.engine_process`), and keep a GPU.
    # vLLM forks by default, but for CPUs.
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
    if config.tensor_parallel == 1:
        # One worker needs no process beside the engine's: with one, the two poll each other, which costs a core.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    if config.enforce_eager:
        # vLLM's sampler asks for compilation whatever the model runs as, which takes seconds of the first request.
        os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")


@contextlib.contextmanager
def _on_cores() -> Iterator[None]:
    """Lets the engine process, started in the body, compute on `ZEROTIR_ENGINE_CORES` (such as `0,1`), one thread each.

    Where the variable is not set (an actor that was started by hand beside others), it takes half the cores' worth of
    threads, wherever the kernel finds room.
    """
    allowed = os.sched_getaffinity(0)
    named = os.environ.get("ZEROTIR_ENGINE_CORES")
    cores = {int(core) for core in named.split(",")} & allowed if named else allowed
    threads = len(cores) if named else max(1, len(cores) // 2)
    before = os.environ.get("OMP_NUM_THREADS")
    # Children inherit both; this process goes back to what it had.
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.sched_setaffinity(0, cores or allowed)
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def _make(
    folder: Path, model: ModelConfig, config: EngineConfig, max_model_len: int, seed: int
) -> tuple[dict[str, Any], Any]:
    from vllm import AsyncEngineArgs, SamplingParams
    from vllm.config import WeightTransferConfig
    from vllm.distributed.weight_transfer.base import WeightTransferInitRequest, WeightTransferUpdateRequest
    from vllm.exceptions import VLLMError
    from vllm.platforms import current_platform
    from vllm.sampling_params import RequestOutputKind
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.exceptions import EngineDeadError

    from actors.engine_stats import EngineStats
    from actors.weight_transfer import BACKEND

    on_cpu: dict[str, Any] = {}
    if current_platform.is_cpu():
        # Small blocks: samples of one problem share the cached keys and values of their prompt, whole blocks of it.
        on_cpu = {"kv_cache_memory_bytes": int(config.kv_cache_gb * 2**30), "block_size": 32}
    arguments = AsyncEngineArgs(
        model=str(folder),
        dtype=compute_dtype(model, on_cpu=current_platform.is_cpu()),
        max_model_len=max_model_len,
        max_num_seqs=config.max_running,
        tensor_parallel_size=config.tensor_parallel,
        gpu_memory_utilization=config.gpu_memory_utilization,
        enforce_eager=config.enforce_eager,
        enable_prefix_caching=True,
        logprobs_mode="processed_logprobs",
        seed=seed,
        weight_transfer_config=WeightTransferConfig(backend=BACKEND),
        worker_extension_cls="actors.weight_transfer.WorkerExtension",
        disable_log_stats=False,
        generation_config="vllm",
        load_format="dummy",
        **on_cpu,
    )
    stats = EngineStats()
    try:
        with _on_cores():
            # The context in which vLLM sizes its batches for throughput: elsewhere a step has 2,048 tokens at most.
            llm = AsyncLLM.from_engine_args(
                arguments, usage_context=UsageContext.LLM_CLASS, stat_loggers=[lambda *_: stats]
            )
    except (RuntimeError, ValueError, OSError) as error:
        raise EngineError(f"vLLM did not start on {folder}: {error}") from error
    return {
        "SamplingParams": SamplingParams,
        "RequestOutputKind": RequestOutputKind,
        "WeightTransferInitRequest": WeightTransferInitRequest,
        "WeightTransferUpdateRequest": WeightTransferUpdateRequest,
        "EngineDeadError": EngineDeadError,
        "VLLMError": VLLMError,
        "stats": stats,
    }, llm
