"""A model that stands for the learner's policy where an engine follows the weight log."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from bus.connection import Bus
from configs.bus import WeightsConfig
from weights.codec import Layout
from weights.writer import WeightWriter

PROMPT = "What is 2 + 3? " * 6


class Source:
    """A model in transformers that stands for the learner's policy, and the writer of its weights."""

    def __init__(self, folder: Path, bus: Bus) -> None:
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.prompt: list[int] = self.tokenizer.encode(PROMPT, add_special_tokens=False)
        self.writer = WeightWriter(bus, WeightsConfig(snapshot_every=3))
        weights = [(name, parameter.detach()) for name, parameter in self.model.named_parameters()]
        self.layout = Layout.of([(name, "float32", tuple(w.shape), w.nbytes) for name, w in weights])
        self.n = -1

    @torch.no_grad()
    def change(self, size: float) -> None:
        """Moves every weight by up to `size` of its tensor's deviation; never towards the end of the sequence."""
        generator = torch.Generator().manual_seed(self.n)
        for parameter in self.model.parameters():
            parameter += size * parameter.std() * torch.randn(parameter.shape, generator=generator)

    async def publish(self) -> None:
        self.n += 1
        state = self.writer.spare_state(self.layout)
        image = torch.from_numpy(state.image)
        for entry, parameter in zip(self.layout.tensors, self.model.parameters(), strict=True):
            image[entry.offset : entry.offset + entry.nbytes].copy_(parameter.detach().reshape(-1).view(torch.uint8))
        await self.writer.publish(self.n, state)
        await self.writer.snapshot_if_due()

    @torch.no_grad()
    def logprobs(self, tokens: list[int]) -> torch.Tensor:
        """Returns the log-probability of each token after the prompt, from one pass with the present weights."""
        logits = self.model(torch.tensor([self.prompt + tokens])).logits[0, len(self.prompt) - 1 : -1]
        return torch.log_softmax(logits, -1)[range(len(tokens)), tokens]
