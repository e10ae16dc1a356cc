"""What vLLM's scheduler reports of each of its steps: how full the cache is, and what it preempts."""

from typing import Any

from vllm.v1.metrics.loggers import StatLoggerBase


class EngineStats(StatLoggerBase):
    """Keeps the newest share of the cache in use, and counts preemptions."""

    def __init__(self) -> None:
        self.cache_use = 0.0
        self.preemptions = 0

    def record(self, scheduler_stats: Any, iteration_stats: Any, *_: Any, **__: Any) -> None:
        """Takes in one step's report."""
        if scheduler_stats is not None:
            self.cache_use = scheduler_stats.kv_cache_usage
        if iteration_stats is not None:
            self.preemptions += iteration_stats.num_preempted_reqs

    def log_engine_initialized(self) -> None:
        """Does nothing: what there is to say of the engine is in its actor's log."""
