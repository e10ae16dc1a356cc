"""The learner's speed and memory against a bare PyTorch loop, and where a step's time goes.

    python -m benchmarks.learner [--config quickstart] [--groups 4] [--samples 4] [--steps 2] [--rounds 2]

Both train the configuration's model on the same synthetic batches: same micro-batches, same loss over two minibatches (so
with one proximal pass), logits only where tokens were sampled, float32 master weights rounded to the model's dtype,
PyTorch's fused AdamW, gradients clipped by their norm. The bare loop has no DeepSpeed, no bus types and no metrics. Each
runs in a process of its own, in turn; the first step of each is not timed. Where TRL is at hand its GRPO trainer is a third
way (`benchmarks.learner_trl`). Prints two tables and writes `benchmarks/results/learner.json`. Needs the machine to itself.
"""

import argparse
import importlib.util
import itertools
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from bus.messages import FinishReason, Trajectory, VersionSpan, WeightVersion
from configs.loading import load_config
from configs.schema import RunConfig
from learner.training.batches import MicroBatch, micro_batches
from learner.training.deepspeed_engine import prepare_to_train
from learner.training.policy import TokenLogprobs
from runtime.compute import compute_dtype
from runtime.models import model_folder

RESULTS = Path(__file__).parent / "results" / "learner.json"
MINIBATCHES = 2


def batch(arguments: argparse.Namespace, vocabulary: int, seed: int) -> list[list[Trajectory]]:
    """Returns the groups of random tokens: prompts of 32 to 96, responses of 64 to 256 with a quarter of inserted ones."""
    rng = np.random.default_rng(seed)
    return [
        [_trajectory(group, sample, vocabulary, rng) for sample in range(arguments.samples)]
        for group in range(arguments.groups)
    ]


def _trajectory(group: int, sample: int, vocabulary: int, rng: np.random.Generator) -> Trajectory:
    prompt, response = int(rng.integers(32, 97)), int(rng.integers(64, 257))
    mask = np.ones(response, np.uint8)
    mask[response // 2 : response * 3 // 4] = 0
    return Trajectory(
        ticket=1 + group * 1000 + sample,
        group=group,
        tokens=rng.integers(4, vocabulary, prompt + response).astype(np.int32),
        prompt_length=prompt,
        loss_mask=mask,
        logprobs=(rng.normal(-10.0, 0.5, response).clip(max=0) * mask).astype(np.float32),
        versions=(VersionSpan(version=WeightVersion(epoch=0, n=0), start=0, end=response),),
        temperature=0.7,
        reward=float(sample % 2),
        reward_parts={},
        tool_calls=(),
        finish_reason=FinishReason.STOP,
        actor="a",
        seed=0,
        issued_at=0.0,
        started_at=0.0,
        first_token_at=0.0,
        published_at=0.0,
    )


class Ours:
    """The learner's own trainer, with a clock around each of its parts."""

    def __init__(self, config: RunConfig) -> None:
        from learner.training.rank_trainer import RankTrainer

        self._clocks: dict[str, list[tuple[Mark, Mark]]] = defaultdict(list)
        self._trainer = RankTrainer(config, model_folder(config.model.path))
        policy = self._trainer.policy
        policy.token_logprobs = self._timed(  # type: ignore[method-assign]
            policy.token_logprobs, lambda: "forward" if torch.is_grad_enabled() else "proximal pass"
        )
        policy.backward = self._timed(policy.backward, lambda: "backward")  # type: ignore[method-assign]
        policy.optimizer_step = self._timed(policy.optimizer_step, lambda: "optimiser")  # type: ignore[method-assign]

    def _timed[T](self, work: Callable[..., T], name: Callable[[], str]) -> Callable[..., T]:
        def timed(*inputs: Any) -> T:
            started = mark()
            result = work(*inputs)
            self._clocks[name()].append((started, mark()))
            return result

        return timed

    def step(self, groups: list[list[Trajectory]], version: int) -> None:
        """Makes one training step of the learner."""
        assert self._trainer.train(groups, version)["skipped_updates"] == 0

    def take_seconds(self) -> dict[str, float]:
        """Returns the seconds of each part since they were last taken."""
        _now()
        taken = {name: sum(itertools.starmap(seconds_between, clock)) for name, clock in self._clocks.items()}
        self._clocks.clear()
        return taken


class Bare:
    """The same step as one would write it by hand."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config.learner
        self._seed = config.seed
        self._dtype: torch.dtype = getattr(torch, config.model.dtype)
        model: Any = AutoModelForCausalLM.from_pretrained(model_folder(config.model.path), dtype=self._dtype)
        cuda = torch.cuda.is_available()
        model.to("cuda" if cuda else "cpu", getattr(torch, compute_dtype(config.model, on_cpu=not cuda)))
        prepare_to_train(model, self._config.deepspeed)
        self._model = TokenLogprobs(model)
        self._parameters = list(self._model.parameters())
        self._master = [parameter.detach().float().clone() for parameter in self._parameters]
        optimizer = self._config.optimizer
        self._optimizer = torch.optim.AdamW(
            self._master,
            lr=optimizer.lr,
            betas=optimizer.betas,
            eps=optimizer.eps,
            weight_decay=optimizer.weight_decay,
            fused=True,
        )

    def step(self, groups: list[list[Trajectory]], version: int) -> None:
        """Makes one training step of the decoupled loss, minibatch by minibatch."""
        trajectories = [item for group in groups for item in group]
        rewards = torch.tensor([item.reward for item in trajectories]).reshape(len(groups), -1)
        advantages = (rewards - rewards.mean(dim=1, keepdim=True)).flatten()
        advantages /= advantages.std(correction=0)
        order = list(range(len(trajectories)))
        random.Random(f"minibatches {self._seed} {version}").shuffle(order)
        minibatches = [
            [micro.to(self._parameters[0].device) for micro in self._pack(trajectories, advantages, order[part::2])]
            for part in range(MINIBATCHES)
        ]
        with torch.no_grad():
            proximal = [self._forward(micro) for micro in minibatches[1]]
        self._update(minibatches[0], None)
        self._update(minibatches[1], proximal)

    def take_seconds(self) -> dict[str, float]:
        """Returns nothing: no part has a clock of its own."""
        return {}

    def _pack(self, items: list[Trajectory], advantages: torch.Tensor, members: list[int]) -> list[MicroBatch]:
        return micro_batches(
            [items[i] for i in members], advantages[members], self._config.deepspeed.micro_batch_tokens
        )

    def _forward(self, micro: MicroBatch) -> torch.Tensor:
        return self._model(micro.input_ids, micro.index, micro.targets, micro.temperatures)

    def _update(self, micros: list[MicroBatch], proximal: list[torch.Tensor] | None) -> None:
        settings = self._config.algorithm
        tokens = sum(len(micro.targets) for micro in micros)
        for number, micro in enumerate(micros):
            logprobs = self._forward(micro)
            reference = logprobs.detach() if proximal is None else proximal[number]
            weights = (reference - micro.behaviour_logprobs).exp().clamp(max=settings.weight_cap)
            ratio = (logprobs - reference).exp()
            clipped = ratio.clamp(1 - settings.clip_low, 1 + settings.clip_high)
            objective = torch.minimum(ratio * micro.advantages, clipped * micro.advantages)
            (-(weights * objective).sum() / tokens).backward()
        for master, parameter in zip(self._master, self._parameters, strict=True):
            assert parameter.grad is not None
            master.grad = parameter.grad.float()
            parameter.grad = None
        torch.nn.utils.clip_grad_norm_(self._master, self._config.optimizer.max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad()
        with torch.no_grad():
            for master, parameter in zip(self._master, self._parameters, strict=True):
                parameter.copy_(master.to(self._dtype))


def measure(way: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Trains `--steps` steps after one that is not timed."""
    overrides = [f"learner.algorithm.minibatches={MINIBATCHES}", "learner.algorithm.loss=decoupled_ppo"]
    config = load_config(arguments.config, [*overrides, *arguments.set])
    vocabulary = AutoConfig.from_pretrained(model_folder(config.model.path)).vocab_size
    batches = [batch(arguments, vocabulary, seed) for seed in range(arguments.steps + 1)]
    parts: dict[str, float] = {}
    if way == "trl":
        from benchmarks.learner_trl import Trl

        seconds = sum(Trl(config, batches, MINIBATCHES).train())
    else:
        trainer = Ours(config) if way == "ours" else Bare(config)
        trainer.step(batches[0], 0)
        trainer.take_seconds()
        started = _now()
        for version, groups in enumerate(batches[1:], start=1):
            trainer.step(groups, version)
        seconds = _now() - started
        parts = {name: value / arguments.steps for name, value in trainer.take_seconds().items()}
    everything = [item for groups in batches[1:] for group in groups for item in group]
    return {
        "way": way,
        "step_seconds": seconds / arguments.steps,
        "sampled_tokens_per_s": sum(int(item.loss_mask.sum()) for item in everything) / seconds,
        "sequence_tokens_per_s": sum(len(item.tokens) for item in everything) / seconds,
        "peak_mb": _peak_mb(),
        "parts": parts and parts | {"host work": seconds / arguments.steps - sum(parts.values())},
    }


type Mark = float | torch.cuda.Event


def mark() -> Mark:
    """Marks a moment: on a GPU one in its queue, since waiting for it would slow down what is measured."""
    if not torch.cuda.is_available():
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def seconds_between(start: Mark, end: Mark) -> float:
    """Returns the seconds between two marks that the device has passed."""
    if isinstance(start, torch.cuda.Event) and isinstance(end, torch.cuda.Event):
        return start.elapsed_time(end) / 1e3
    assert isinstance(start, float)
    assert isinstance(end, float)
    return end - start


def _now() -> float:
    """Returns the time once the device has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _peak_mb() -> float:
    """Returns the peak memory of the GPU where there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def show(results: dict[str, Any]) -> None:
    """Prints the medians over the rounds."""
    ways = dict.fromkeys(row["way"] for row in results["rows"])
    rows = {way: [row for row in results["rows"] if row["way"] == way] for way in ways}

    def median(way: str, name: str) -> float:
        return statistics.median(row[name] for row in rows[way])

    print(f"{'':<12}{'s a step':>10}{'sampled tokens/s':>18}{'tokens/s':>10}{'peak MiB':>10}")
    for way in rows:
        values = [median(way, name) for name in ("step_seconds", "sampled_tokens_per_s", "sequence_tokens_per_s")]
        print(f"{way:<12}{values[0]:>10.2f}{values[1]:>18.1f}{values[2]:>10.1f}{median(way, 'peak_mb'):>10.0f}")
    speed = median("bare", "step_seconds") / median("ours", "step_seconds")
    memory = median("ours", "peak_mb") / median("bare", "peak_mb")
    print(f"ours: {speed:.1%} of the bare loop's speed with {memory:.1%} of its memory\n")
    whole = median("ours", "step_seconds")
    for name in ("proximal pass", "forward", "backward", "optimiser", "host work"):
        seconds = statistics.median(row["parts"].get(name, 0.0) for row in rows["ours"])
        print(f"{name:<16}{seconds:>8.2f} s{seconds / whole:>8.1%}")


def main() -> None:
    """Runs every way in turn, each in a process of its own."""
    parser = argparse.ArgumentParser(description="The learner against a bare PyTorch loop.")
    parser.add_argument("way", nargs="?", choices=("bare", "ours", "trl"), help="only this one, here: prints JSON")
    parser.add_argument("--config", default="quickstart")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--groups", type=int, default=4)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--steps", type=int, default=2, help="timed in each process")
    parser.add_argument("--rounds", type=int, default=2, help="processes of each way")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if arguments.way:
        print(json.dumps(measure(arguments.way, arguments)))
        return
    results: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "cores": os.cpu_count(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "config": arguments.config,
        "groups": arguments.groups,
        "samples": arguments.samples,
        "steps": arguments.steps,
        "rows": [],
    }
    for _ in range(arguments.rounds):
        for way in ("bare", "ours", *(("trl",) if importlib.util.find_spec("trl") else ())):
            command = [sys.executable, "-m", "benchmarks.learner", way, *sys.argv[1:]]
            done = subprocess.run(command, stdout=subprocess.PIPE, timeout=1800, check=True)
            results["rows"].append(json.loads(done.stdout.splitlines()[-1]))
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text(json.dumps(results, indent=1) + "\n")
    show(results)


if __name__ == "__main__":
    main()
