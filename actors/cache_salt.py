"""Prefix caching by weight version, also for requests that wait while weights are loaded.

A request's cache salt is the version under which it was asked for (`actors.vllm_engine`), so vLLM looks its prefix up among
the blocks of that version alone. One that still waits when the next version is loaded, or is preempted after it, would find
the keys and values of the old weights again, and its tokens would be called the new version's. vLLM has no way to change
the salt of a request, so this plugin, which vLLM loads in every process of an engine, does it: when the version is set, for
all requests that wait, and later for each that is preempted. Requests that run keep what they have.
"""

from typing import Any


def install() -> None:
    """Changes vLLM's scheduler; vLLM calls this as a plugin.

    Raises AttributeError where the scheduler is not the one that this was written for.
    """
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.engine.core import EngineCore

    set_version, preempt = EngineCore.set_weight_version, Scheduler._preempt_request

    def set_version_and_salt(self: EngineCore, weight_version: str) -> None:
        set_version(self, weight_version)
        scheduler: Any = self.scheduler
        scheduler.zerotir_salt = weight_version
        for request in scheduler.requests.values():
            if request.num_computed_tokens == 0:
                _salt(request, weight_version)

    def preempt_and_salt(self: Any, request: Any, *args: Any, **kwargs: Any) -> None:
        preempt(self, request, *args, **kwargs)
        _salt(request, getattr(self, "zerotir_salt", request.cache_salt))

    EngineCore.set_weight_version = set_version_and_salt
    Scheduler._preempt_request = preempt_and_salt


def _salt(request: Any, salt: str) -> None:
    if request.cache_salt != salt:
        request.cache_salt = salt
        request.block_hashes.clear()
        request.update_block_hashes()
