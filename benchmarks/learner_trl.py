"""TRL's GRPO trainer on the batches of `benchmarks.learner`: the same trajectories, handed to it instead of generated.

TRL is no requirement of the project: it is put beside it, without touching any pinned package, and is left out where absent.

    .tools/bin/uv pip install --no-deps --target /tmp/trl trl==1.16.0
    PYTHONPATH=/tmp/trl python -m benchmarks.learner

Two updates a batch as ours, in micro-batches of as many sequences as fit the budget at the longest length, since TRL pads
all sequences of a batch to one length. It trains float32 weights (ours are rounded to bfloat16 after each update) and passes
the whole batch once for the log-probabilities it clips against (ours needs that for the second half alone).
"""

import itertools
import tempfile
import time
from typing import Any

import numpy as np
import torch

from bus.messages import Trajectory
from configs.schema import RunConfig
from runtime.models import model_folder


class Trl:
    """One GRPO trainer that is fed batch after batch; `train` returns the seconds of each step after the first."""

    def __init__(self, config: RunConfig, batches: list[list[list[Trajectory]]], updates: int) -> None:
        from datasets import Dataset
        from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
        from trl import GRPOConfig, GRPOTrainer

        folder = model_folder(config.model.path)
        flat = [[item for group in groups for item in group] for groups in batches]
        longest = max(len(item.tokens) for items in flat for item in items)
        size, samples = len(flat[0]), len(batches[0][0])
        per_update = size // updates
        fitting = max(1, config.learner.deepspeed.micro_batch_tokens // longest)
        micro = max(n for n in range(1, per_update + 1) if per_update % n == 0 and n <= fitting)
        feed = iter(flat)

        def rollout(prompts: list[str], trainer: Any) -> dict[str, Any]:
            items = next(feed)
            parts = {
                "prompt_ids": [item.tokens[: item.prompt_length].tolist() for item in items],
                "completion_ids": [item.tokens[item.prompt_length :].tolist() for item in items],
                "logprobs": [item.logprobs.tolist() for item in items],
                "env_mask": [item.loss_mask.astype(np.int64).tolist() for item in items],
            }
            return parts | {"gained": [item.reward for item in items]}

        def reward(gained: list[float], **_: Any) -> list[float]:
            return gained

        marks: list[float] = []
        self._marks = marks

        class Clock(TrainerCallback):
            def on_step_end(self, *_: Any, **__: Any) -> None:
                marks.append(time.perf_counter())

        optimizer = config.learner.optimizer
        self._updates = updates
        self._trainer = GRPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
            reward_funcs=reward,
            args=GRPOConfig(
                output_dir=tempfile.mkdtemp(prefix="trl-"),
                per_device_train_batch_size=micro,
                gradient_accumulation_steps=per_update // micro,
                steps_per_generation=size // micro,
                num_generations=samples,
                max_steps=len(batches) * updates,
                learning_rate=optimizer.lr,
                lr_scheduler_type="constant",
                adam_beta1=optimizer.betas[0],
                adam_beta2=optimizer.betas[1],
                max_grad_norm=optimizer.max_grad_norm,
                weight_decay=optimizer.weight_decay,
                temperature=flat[0][0].temperature,
                beta=0.0,
                gradient_checkpointing=config.learner.deepspeed.gradient_checkpointing,
                use_cpu=not torch.cuda.is_available(),
                bf16=False,
                report_to=[],
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_dict({"prompt": ["."] * size * len(batches)}),
            processing_class=AutoTokenizer.from_pretrained(folder),
            rollout_func=rollout,
            callbacks=[Clock()],
        )

    def train(self) -> list[float]:
        """Returns the seconds of every batch but the first."""
        self._trainer.train()
        ends = self._marks[self._updates - 1 :: self._updates]
        return [end - begin for begin, end in itertools.pairwise(ends)]
