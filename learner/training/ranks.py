"""The ranks that train together: their process group, and what they give each other in a step.

Every rank holds the whole batch and computes the same advantages from it; each passes its share of the micro-batches
through the model. Nothing that travels between ranks is ever unpickled.
"""

import os
from collections.abc import Sequence
from datetime import timedelta

import torch
from torch import distributed as dist

from configs.schema import ModelConfig
from learner.training.batches import MicroBatch
from runtime.compute import compute_dtype

TIMEOUT = timedelta(minutes=30)
"""Bound of every wait of one rank for another."""


def choose_accelerator() -> bool:
    """Tells DeepSpeed, which would guess, and warn, where it is imported before it was told. True for CUDA."""
    cuda = torch.cuda.is_available()
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if cuda else "cpu")
    return cuda


def join_process_group() -> bool:
    """Makes sure of a process group; returns whether it was made here.

    A launcher (`torchrun`, `deepspeed`, `zerotir learner --ranks`) says in the environment how many ranks there are and
    where they meet; without one there is a single rank.
    """
    cuda = choose_accelerator()
    os.environ.setdefault("LOCAL_RANK", "0")
    if dist.is_initialized():
        return False
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group(backend, timeout=TIMEOUT)
    else:
        # One rank meets nobody: a store in memory needs no address and no port.
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    return True


def leave_process_group() -> None:
    """Ends the one that `join_process_group` made, and DeepSpeed's groups in it."""
    import deepspeed as ds

    (ds.comm if ds.comm.is_initialized() else dist).destroy_process_group()


class Ranks:
    """Exchanges data with the other processes of the process group, which must have been joined."""

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.count = dist.get_world_size()

    def share(self, micros: Sequence[MicroBatch]) -> list[MicroBatch]:
        """Returns this rank's part of the micro-batches that all ranks hold; see `share`."""
        return share(micros, self.rank, self.count)

    def collect(self, parts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Returns what all ranks computed for the micro-batches of one `share`, in the order of the whole list.

        Args:
            parts: float32 [N] on any device, one for each of this rank's micro-batches, N its sampled tokens.

        Returns:
            One tensor on the CPU for each micro-batch, those without sampled tokens left out.
        """
        mine = [part.detach().float().cpu() for part in parts]
        if self.count > 1:
            lengths = torch.tensor([len(part) for part in mine])
            all_lengths = [torch.empty_like(lengths) for _ in range(self.count)]
            dist.all_gather(all_lengths, lengths)
            flat = torch.zeros(int(max(each.sum() for each in all_lengths)))
            torch.cat(mine, out=flat[: int(lengths.sum())])
            gathered = [torch.empty_like(flat) for _ in range(self.count)]
            dist.all_gather(gathered, flat)
            of_ranks = [
                values[: int(each.sum())].split(each.tolist())
                for values, each in zip(gathered, all_lengths, strict=True)
            ]
            mine = [part for one_of_each in zip(*of_ranks, strict=True) for part in one_of_each]
        return [part for part in mine if len(part)]

    def total(self, values: dict[str, float]) -> dict[str, float]:
        """Returns the sum of each value over all ranks; all give the same names."""
        if self.count == 1:
            return values
        numbers = torch.tensor([values[name] for name in sorted(values)], dtype=torch.float64)
        dist.all_reduce(numbers)
        return dict(zip(sorted(values), numbers.tolist(), strict=True))

    def broadcast(self, data: bytes = b"") -> bytes:
        """Returns rank 0's `data`, on every rank.

        Raises RuntimeError where a rank is gone or does not answer in `TIMEOUT`.
        """
        length = torch.tensor([len(data)])
        dist.broadcast(length, src=0)
        content = torch.empty(int(length), dtype=torch.uint8)
        if data:
            content = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        dist.broadcast(content, src=0)
        return data or content.numpy().tobytes()


def share(micros: Sequence[MicroBatch], rank: int, count: int) -> list[MicroBatch]:
    """Returns every `count`-th of at least one micro-batch, from the one numbered `rank` on.

    All ranks get equally many, since the engine's collectives wait for each other: where they do not come out even, the
    last ones are micro-batches without sampled tokens.
    """
    mine = list(micros[rank::count])
    rounds = -(-len(micros) // count)
    return mine + [_empty(micros[0])] * (rounds - len(mine))


def _empty(like: MicroBatch) -> MicroBatch:
    """Returns a micro-batch of one token of padding and no sampled token: its loss, and so its gradient, is exactly zero."""
    flat = {name: getattr(like, name)[:0] for name in vars(like)}
    return MicroBatch(**flat | {"input_ids": like.input_ids[:1, :1]})


def agreed_compute_dtype(model: ModelConfig) -> str:
    """Returns the name of the dtype of passes that rank 0 chooses, on every rank: two ranks that measure could differ."""
    ranks = Ranks()
    chosen = compute_dtype(model, on_cpu=not torch.cuda.is_available()) if ranks.rank == 0 else ""
    return ranks.broadcast(chosen.encode()).decode()
