"""Phases of `benchmarks.weights` that need a training engine, an inference engine or much memory: a process each.

    python -m benchmarks.weight_phases record LR FOLDER | lost BUS | pause BUS IMAGES | billion BUS

Each prints one line of JSON at its end. BUS is the address file of a run of its own.
"""

import asyncio
import json
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from benchmarks.weight_follower import peak_mb
from benchmarks.weight_ways import followers
from bus.address import BusAddress
from bus.connection import open_bus
from bus.messages import TensorEntry
from configs.bus import BusConfig, WeightsConfig
from configs.loading import load_config
from learner.training.batches import MicroBatch
from learner.training.policy import Policy
from runtime.models import model_folder
from weights.codec import Layout, WeightState
from weights.writer import WeightWriter

LOST_PAIRS = 6
"""Steps alone, and as many beside a version's publishing."""
VERSIONS = 4
"""Published in each setting; the first one is not timed."""
CONFIG = WeightsConfig(snapshot_every=1000)


class Steps:
    """SmolLM2 in the learner's engine: each call is a real optimiser step; the image is what the learner would publish."""

    def __init__(self, lr: float) -> None:
        config = load_config("quickstart", [f"learner.optimizer.lr={lr}"])
        folder = model_folder(config.model.path)
        learner = config.learner
        self.policy = Policy(folder, config.model, learner.optimizer, learner.deepspeed, 0, 1000, torch.float32)
        self.layout = self.policy.weight_layout()
        self._generator = torch.Generator().manual_seed(0)

    def step(self, micro_batches: int = 1) -> float:
        """Makes a policy gradient step on so many times 8 sequences of 128 tokens; returns its seconds."""
        started = time.perf_counter()
        for _ in range(micro_batches):
            ids = torch.randint(100, 40_000, (8, 128), generator=self._generator)
            index = torch.arange(8 * 128).reshape(8, 128)[:, :-1].reshape(-1)
            advantages = torch.randn(8, generator=self._generator).repeat_interleave(127)
            micro = MicroBatch(
                ids,
                index,
                ids[:, 1:].reshape(-1),
                torch.zeros(8 * 127),
                advantages,
                torch.ones(8 * 127),
                torch.arange(8),
            )
            self.policy.backward(-(self.policy.token_logprobs(micro) * advantages).mean())
        assert self.policy.optimizer_step().applied
        return time.perf_counter() - started

    def copy(self, state: WeightState) -> float:
        """Copies the weights into host memory, as the learner does it; returns the seconds."""
        started = time.perf_counter()
        self.policy.copy_weights(torch.from_numpy(state.image))
        return time.perf_counter() - started


def record(lr: float, folder: Path) -> dict:
    """Writes the images of successive versions and their layout."""
    steps = Steps(lr)
    state = WeightState(steps.layout)
    (folder / "layout.json").write_text(json.dumps([entry.model_dump() for entry in steps.layout.tensors]))
    for n in range(VERSIONS):
        steps.step()
        steps.copy(state)
        (folder / f"{n}.image").write_bytes(state.image.tobytes())
    return {"lr": lr}


def recorded(folder: Path) -> tuple[Layout, list[Path]]:
    entries = [
        TensorEntry(**(entry | {"shape": tuple(entry["shape"])}))
        for entry in json.loads((folder / "layout.json").read_text())
    ]
    return Layout(entries), [folder / f"{n}.image" for n in range(VERSIONS)]


async def lost(address: Path) -> dict:
    """Measures what publishing costs the learner at the quickstart's rate: the copy, and how it slows the steps beside it.

    Steps alone and beside a version's publishing take turns. Where a step's time varies by more than publishing can cost,
    the CPU seconds of publishing say what it costs at most: each is one that the step lacks.
    """
    steps = Steps(2e-5)
    loop = asyncio.get_running_loop()
    async with open_bus(BusAddress.read(address), BusConfig(timeout_s=60), "writer") as bus:
        writer = WeightWriter(bus, CONFIG)
        await writer.open()
        alone: list[float] = []
        beside: list[float] = []
        copies: list[float] = []
        cpu: list[float] = []
        # One thread, as in the learner: each would keep freed memory of its own.
        with ThreadPoolExecutor(1) as thread:
            for n in range(2 * LOST_PAIRS + 1):
                state = writer.spare_state(steps.layout)
                copies.append(await loop.run_in_executor(thread, steps.copy, state))
                before = time.process_time()
                publishing = asyncio.create_task(writer.publish(n, state))
                if n == 0 or n % 2:
                    await publishing
                    cpu.append(time.process_time() - before)
                seconds = await loop.run_in_executor(thread, steps.step, 2)
                await publishing
                if n:
                    (alone if n % 2 else beside).append(seconds)
    step = statistics.median(alone)
    copied = statistics.median(copies[1:])
    published = statistics.median(cpu[1:])
    return {
        "step_tokens": 2048,
        "step_seconds": step,
        "step_seconds_lowest": min(alone),
        "step_seconds_highest": max(alone),
        "step_seconds_beside_publishing": statistics.median(beside),
        "copy_seconds": copied,
        "publish_cpu_seconds": published,
        "lost_share": (copied + statistics.median(beside) - step) / step,
        "lost_share_by_cpu": (copied + published / torch.get_num_threads()) / step,
        "learner_peak_mb": peak_mb(),
        "of_it_images_mb": 2 * steps.layout.nbytes / 2**20,
    }


async def pause(address: Path, images: Path) -> dict:
    """Measures how long a running engine stands still for an update, with 32 requests in flight."""
    from actors.engine import Sampling
    from actors.vllm_engine import VllmEngine
    from actors.weight_loader import WeightLoader

    layout, paths = recorded(images)
    config = load_config("quickstart")
    engine = await VllmEngine.start(model_folder(config.model.path), config.model, config.actor.engine, 1024, 1)
    async with open_bus(BusAddress.read(address), BusConfig(timeout_s=60), "writer") as bus:
        writer = WeightWriter(bus, CONFIG)
        await writer.open()
        loader = WeightLoader(bus, engine, recompute=False)
        requests: list[asyncio.Task] = []
        paused, synced = [], []
        for n, path in enumerate(paths):
            state = writer.spare_state(layout)
            state.image[:] = np.fromfile(path, np.uint8)
            await writer.publish(n, state)
            assert await loader.update(60)
            paused.append(loader.pause_seconds)
            synced.append(loader.sync_seconds)
            if not requests:
                prompt = list(range(100, 160))
                requests = [
                    asyncio.create_task(
                        engine.generate(
                            prompt,
                            Sampling(max_tokens=900, stop=(), temperature=1.0, top_p=1.0, top_k=0, deadline_s=600.0),
                        )
                    )
                    for _ in range(32)
                ]
            await asyncio.sleep(3)
        for request in requests:
            request.cancel()
        await asyncio.gather(*requests, return_exceptions=True)
        loader.close()
    await engine.stop()
    return {
        "pause_seconds": statistics.median(paused[1:]),
        "manifest_to_loaded_seconds": statistics.median(synced[1:]),
    }


async def billion(address: Path) -> dict:
    """Measures a synthetic state of 1.07 G parameters, moved by 1e-6 tensor by tensor, to one follower."""
    layout = Layout.of([(f"layer.{n}", "bfloat16", (4096, 4096), 2 * 4096**2) for n in range(64)])
    generator = torch.Generator().manual_seed(0)

    def move(state: WeightState, before: WeightState | None) -> None:
        for tensor in layout.tensors:
            place = slice(tensor.offset, tensor.offset + tensor.nbytes)
            weights = torch.from_numpy(state.image[place]).view(torch.bfloat16)
            if before is None:
                weights.copy_(torch.randn(weights.shape, generator=generator) * 0.03)
                continue
            old = torch.from_numpy(before.image[place]).view(torch.bfloat16).float()
            # The master weight lies anywhere within its bfloat16 weight's rounding interval.
            inside = (torch.rand(weights.shape, generator=generator) - 0.5) * old.abs() * 2.0**-8
            weights.copy_(old + inside * 0.99 + 1e-6 * torch.randn(weights.shape, generator=generator).sign())

    rows = []
    before = None
    async with (
        open_bus(BusAddress.read(address), BusConfig(timeout_s=60), "writer") as bus,
        followers(1, "log", str(address)) as readers,
    ):
        writer = WeightWriter(bus, CONFIG)
        await writer.open()
        for n in range(3):
            state = writer.spare_state(layout)
            move(state, before)
            started = time.time()
            wire = (await writer.publish(n, state)).wire_bytes
            rows.append({"wire_bytes": wire, "seconds": await readers.hold(n) - started})
            before = state
    return {
        "nbytes": layout.nbytes,
        "snapshot_seconds": rows[0]["seconds"],
        "delta_seconds": rows[-1]["seconds"],
        "delta_bytes": rows[-1]["wire_bytes"],
        "ratio": layout.nbytes / rows[-1]["wire_bytes"],
        "writer_peak_mb": peak_mb(),
        "follower_peak_mb": readers.peak_mb,
    }


if __name__ == "__main__":
    phase, *arguments = sys.argv[1:]
    if phase == "record":
        result = record(float(arguments[0]), Path(arguments[1]))
    elif phase == "lost":
        result = asyncio.run(lost(Path(arguments[0])))
    elif phase == "pause":
        result = asyncio.run(pause(Path(arguments[0]), Path(arguments[1])))
    else:
        result = asyncio.run(billion(Path(arguments[0])))
    print(json.dumps(result), flush=True)
