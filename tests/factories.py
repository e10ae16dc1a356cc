"""Makes the messages that tests are about, valid in all that a test does not say."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from bus.messages import Failure, FinishReason, Trajectory, VersionSpan, WeightVersion
from configs.schema import FiltersConfig
from learner.tickets.filters import Filters
from learner.tickets.ledger import Ledger

VOCABULARY = 80
"""Token ids of the tiny model that a random trajectory draws from."""


def tiny_shape() -> dict[str, Any]:
    """Returns the arguments of a transformers configuration that make a model of two small layers."""
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": 256,
    }


def trajectory(
    prompt: int = 2, response: int = 3, *, mask: Sequence[int] | np.ndarray | None = None, **fields: Any
) -> Trajectory:
    """Returns a trajectory of so many tokens, 0, 1, 2 ..., all of the response sampled unless `mask` says otherwise.

    `fields` replace whatever else it has.
    """
    loss_mask = np.ones(response, np.uint8) if mask is None else np.array(mask, np.uint8)
    values: dict[str, Any] = {
        "ticket": 1,
        "group": 0,
        "tokens": np.arange(prompt + response, dtype=np.int32),
        "prompt_length": prompt,
        "loss_mask": loss_mask,
        "logprobs": -loss_mask.astype(np.float32),
        "versions": spans((0, 0, response)),
        "temperature": 1.0,
        "reward": 0.0,
        "reward_parts": {},
        "tool_calls": (),
        "finish_reason": FinishReason.STOP,
        "actor": "a",
        "seed": 0,
        "issued_at": 0.0,
        "started_at": 0.0,
        "first_token_at": 0.0,
        "published_at": 0.0,
    }
    return Trajectory.model_validate(values | fields)


def spans(*each: tuple[int, int, int], epoch: int = 0) -> tuple[VersionSpan, ...]:
    """Returns version spans from (n, start, end)."""
    return tuple(VersionSpan(version=WeightVersion(epoch=epoch, n=n), start=a, end=b) for n, a, b in each)


def of_tokens(prompt: list[int], response: list[int], mask: list[int], temperature: float = 1.0) -> Trajectory:
    """Returns a trajectory of these tokens; behaviour log-probabilities are -token / 10 on sampled ones."""
    return trajectory(
        len(prompt),
        len(response),
        mask=mask,
        tokens=np.array(prompt + response, np.int32),
        logprobs=(-np.array(response, np.float32) / 10 * np.array(mask)).astype(np.float32),
        temperature=temperature,
    )


def random_trajectory(group: int, reward: float, rng: np.random.Generator, temperature: float = 0.7) -> Trajectory:
    """Returns random tokens with a stretch of inserted ones; behaviour log-probabilities near a random model's."""
    prompt, response = int(rng.integers(2, 12)), int(rng.integers(6, 40))
    mask = np.ones(response, np.uint8)
    mask[response // 3 : response // 2] = 0
    return trajectory(
        prompt,
        response,
        mask=mask,
        group=group,
        reward=reward,
        temperature=temperature,
        tokens=rng.integers(4, VOCABULARY, prompt + response).astype(np.int32),
        logprobs=(rng.normal(-4.4, 0.5, response) * mask).astype(np.float32),
    )


def random_batch(seed: int = 0, temperature: float = 0.7) -> list[list[Trajectory]]:
    """Returns three groups of four random trajectories, one or two of which are right."""
    rng = np.random.default_rng(seed)
    return [
        [random_trajectory(group, float(sample % 3 == 0), rng, temperature) for sample in range(4)]
        for group in range(3)
    ]


def make_ledger(groups: int = 2, size: int = 2, staleness: int = 1, steps: int = 100) -> Ledger:
    """Returns a ledger with the filters that are on by default."""
    return Ledger(groups, size, staleness, steps, Filters(FiltersConfig(), group_relative=True))


def answer(ledger: Ledger, ticket: int, reward: float = 0.0, version: int | None = None) -> Trajectory:
    """Returns a trajectory that answers a ticket of `ledger`, by default with the weights that it was issued under."""
    group = ledger.group_of(ticket)
    n = ledger.issued_under(group) if version is None else version
    return trajectory(2, 2, ticket=ticket, group=group, reward=reward, versions=spans((n, 0, 2)))


def failure(ledger: Ledger, ticket: int, **fields: Any) -> Failure:
    """Returns a failure that answers a ticket of `ledger`."""
    values = {"reason": "deadline", "attempts": 1, "actor": "a", "published_at": 0.0}
    return Failure.model_validate({"ticket": ticket, "group": ledger.group_of(ticket)} | values | fields)
