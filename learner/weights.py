"""One contiguous image of the policy's weights in host memory, as the weight log carries it."""

from collections.abc import Iterator

import torch

from bus.messages import TensorEntry

ALIGNMENT = 64
"""Tensors begin at multiples of this many bytes, so that readers can view them in place."""


class WeightImage:
    """Reuses one buffer for every version."""

    def __init__(self) -> None:
        self._buffer = torch.empty(0, dtype=torch.uint8)

    def fill(self, weights: Iterator[tuple[str, torch.Tensor]]) -> tuple[list[TensorEntry], memoryview]:
        """Copies the weights; returns where each lies and the bytes, which stay valid until the next call."""
        tensors = list(weights)
        entries: list[TensorEntry] = []
        offset = 0
        for name, tensor in tensors:
            nbytes = tensor.numel() * tensor.element_size()
            entries.append(
                TensorEntry(
                    name=name,
                    dtype=str(tensor.dtype).removeprefix("torch."),
                    shape=tuple(tensor.shape),
                    offset=offset,
                    nbytes=nbytes,
                )
            )
            offset += -(-nbytes // ALIGNMENT) * ALIGNMENT
        if len(self._buffer) != offset:
            self._buffer = torch.zeros(offset, dtype=torch.uint8)
        for entry, (_, tensor) in zip(entries, tensors, strict=True):
            raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
            self._buffer[entry.offset : entry.offset + entry.nbytes].copy_(raw)
        return entries, memoryview(self._buffer.numpy())
