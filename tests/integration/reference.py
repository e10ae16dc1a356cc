"""A model in transformers against which an engine is held: its weights, its distributions, its cache across an update."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from actors.engine import Completion
from bus.messages import TensorEntry, WeightVersion

PROMPT = "What is 2 + 3?\n"


class Reference:
    """The same model in transformers, and its weights as a host copy that an engine loads."""

    def __init__(self, folder: Path, memory: Path, drop: tuple[str, ...] = ()) -> None:
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.prompt: list[int] = self.tokenizer.encode(PROMPT, add_special_tokens=False)
        self._memory = memory
        self._drop = drop
        self._original = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        self._version = 0
        self._published: dict[WeightVersion, dict[str, torch.Tensor]] = {}

    def perturb(self, seed: int) -> None:
        """Moves every weight so far from the first ones that greedy texts differ."""
        generator = torch.Generator().manual_seed(seed)
        state = {
            name: tensor + 0.5 * tensor.std() * torch.randn(tensor.shape, generator=generator)
            for name, tensor in self._original.items()
        }
        self.model.load_state_dict(state)

    @torch.no_grad()
    def bias(self, logits: dict[int, float]) -> None:
        """Adds about so much to the logit of each of these tokens, at every position.

        The head has no bias: one dimension of the residual stream is made a constant that only these tokens read.
        """
        head = self.model.lm_head.weight
        self.model.model.embed_tokens.weight[:, 0] = 0.4
        head[:, 0] = 0.0
        hidden = self.model.model(torch.tensor([self.prompt])).last_hidden_state[0, :, 0]
        for token, logit in logits.items():
            head[token, 0] = logit / hidden.mean()

    @property
    def end(self) -> int:
        """The end of the sequence."""
        return self.model.config.eos_token_id

    def restore(self) -> None:
        self.model.load_state_dict(self._original)

    def publish(self) -> tuple[WeightVersion, tuple[TensorEntry, ...], str]:
        """Writes the present weights as the next version: the arguments of `Engine.load`."""
        entries, data = [], bytearray()
        for name, tensor in self.model.state_dict().items():
            if name in self._drop:
                continue
            raw = tensor.contiguous().numpy().tobytes()
            entries.append(
                TensorEntry(name=name, dtype="float32", shape=tuple(tensor.shape), offset=len(data), nbytes=len(raw))
            )
            data += raw
        self._memory.write_bytes(data)
        self._version += 1
        version = WeightVersion(epoch=1, n=self._version)
        self._published[version] = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        return version, tuple(entries), str(self._memory)

    @torch.no_grad()
    def logprobs(self, prompt: list[int], tokens: list[int], temperature: float) -> torch.Tensor:
        """[len(tokens), vocabulary] log-probabilities of each token's distribution."""
        logits = self.model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
        return torch.log_softmax(logits / temperature, dim=-1)

    def greedy(self, prompt: list[int], count: int) -> list[int]:
        """The most likely tokens, one after another, until the end of the sequence."""
        tokens: list[int] = []
        while len(tokens) < count and self.end not in tokens:
            tokens.append(int(self.logprobs(prompt, [*tokens, 0], 1.0)[-1].argmax()))
        return tokens

    @torch.no_grad()
    def across_versions(
        self, prompt: list[int], completion: Completion, temperature: float, *, keep: bool
    ) -> torch.Tensor:
        """[n] log-probability of each token of a request under the weights of its version.

        With `keep`, keys and values of all that a version read stay as it made them, and the next version goes on from
        there; without, each version reads everything anew.
        """
        sequence, rows = prompt + completion.tokens, []
        cache, done = None, 0
        for span in completion.versions:
            self.model.load_state_dict(self._published[span.version])
            # A version reads the tokens up to the one before the last that it samples.
            end = len(prompt) + span.end - 1
            output = self.model(torch.tensor([sequence[done:end]]), past_key_values=cache, use_cache=True)
            logprobs = torch.log_softmax(output.logits[0] / temperature, dim=-1)
            first = len(prompt) + span.start
            rows += [logprobs[position - 1 - done, sequence[position]] for position in range(first, end + 1)]
            if keep:
                cache, done = output.past_key_values, end
        return torch.stack(rows)
