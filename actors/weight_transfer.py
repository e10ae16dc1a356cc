"""The part of a weight update that runs inside vLLM's workers: from shared memory into the model.

Registered with vLLM as the weight transfer engine `zerotir`; workers import this module as their extension class. Every
worker of a host maps the same host copy, read-only, so tensor parallelism costs no further copies. Every parameter of the
model is accounted for at each load (`actors.weight_names`).
"""

import math
import mmap
from dataclasses import dataclass
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from actors.weight_names import require_all_loaded, require_same_names

BACKEND = "zerotir"


@dataclass
class InitInfo(WeightTransferInitInfo):
    """Holds nothing: there is nothing to set up ahead of time."""


@dataclass
class UpdateInfo(WeightTransferUpdateInfo):
    """A host copy and the tensors in it: (name, dtype, shape, offset in bytes)."""

    path: str
    tensors: list[tuple[str, str, list[int], int]]


class SharedMemoryTransfer(WeightTransferEngine[InitInfo, UpdateInfo]):
    """Loads tensors from a file in shared memory."""

    init_info_cls = InitInfo
    update_info_cls = UpdateInfo

    def init_transfer_engine(self, init_info: InitInfo) -> None:
        """Does nothing: there is nothing to set up."""

    def start_weight_update(self) -> None:
        """Begins vLLM's layerwise reload: linear layers are re-packed after loading."""
        # Before the reload: during it a tied head has a parameter of its own.
        self._parameters = [name for name, _ in self.model.named_parameters()]
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Receives the weights as the base class does, which synchronises an accelerator whether there is one or not."""
        self.receive_weights(self.parse_update_info(update_info))
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: UpdateInfo) -> None:
        """Views the tensors in place; the model's loader copies them.

        Raises ValueError where a weight fits no parameter or a parameter gets none: the engine can't go on then.
        """
        model: Any = self.model
        packed = getattr(model, "packed_modules_mapping", {})
        require_same_names(self._parameters, packed, [name for name, *_ in update_info.tensors])
        with open(update_info.path, "rb") as file:
            # Unmapped with the last view of it: a loader may keep tensors until their layer is whole.
            memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)

        def view(dtype: str, shape: list[int], offset: int) -> torch.Tensor:
            count = math.prod(shape)
            return torch.frombuffer(memory, dtype=getattr(torch, dtype), count=count, offset=offset).reshape(shape)

        views = ((name, view(dtype, shape, offset)) for name, dtype, shape, offset in update_info.tensors)
        require_all_loaded(self._parameters, model.load_weights(views))
        finalize_layerwise_reload(self.model, self.model_config)
        if self.model_config.hf_text_config.tie_word_embeddings:
            # A tied head gets no weights of its own, but on a CPU it keeps a packed copy, which would stay the old one.
            head = getattr(model, "lm_head", None)  # Gemma has none: its embeddings serve as it.
            if head is not None:
                head.quant_method.process_weights_after_loading(head)

    def finish_weight_update(self) -> None:
        """Does nothing: the weights are in place already."""

    def shutdown(self) -> None:
        """Does nothing: nothing is held."""


class WorkerExtension:
    """vLLM mixes this class into its workers; importing it registers the backend there."""


WeightTransferEngineFactory.register_engine(BACKEND, SharedMemoryTransfer)
