"""Prefix caching by weight version, also for requests that wait while weights are loaded.

A request's cache salt is the version under which it was asked for (`actors.vllm_engine`), so vLLM looks for its prefix among
the blocks of that version alone. A request may still wait when the next version is loaded, or be preempted after it. With
its old salt it would find keys and values of the old weights, while its tokens carry the new version. vLLM has no way to
change the salt of a request, so this plugin does it: for all waiting requests when the version is set, and for each request
that is preempted later. vLLM loads the plugin in every process of an engine. Running requests keep what they have.
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
