"""What the configuration composes: advantages of a batch; whole losses by hand, their gradients by finite differences."""

import math
from collections.abc import Callable

import pytest
import torch
from torch.func import functional_call
from transformers import GPT2Config, GPT2LMHeadModel

from configs.schema import AlgorithmConfig
from learner.algorithm.losses import value_loss
from learner.algorithm.objective import batch_advantages, length_scale, policy_objective
from learner.training.batches import MicroBatch, micro_batches
from learner.training.critic import TokenValues
from tests.factories import of_tokens

REWARDS = torch.tensor([1.0, 0.0, 0.0, 1.0], dtype=torch.float64)
GROUPS = torch.tensor([0, 0, 0, 1])
LENGTHS = [1, 2, 3, 2]


def advantages_of(
    estimator: str, values: float = 0.0, **changes: object
) -> tuple[list[list[float]], list[list[float]]]:
    algorithm = AlgorithmConfig.model_validate({"advantage": estimator} | changes)
    constant = [torch.full((length,), values) for length in LENGTHS]
    advantages, returns = batch_advantages(
        algorithm, REWARDS, GROUPS, constant, [torch.zeros(length) for length in LENGTHS], LENGTHS
    )
    expanded = [own.expand(length).tolist() for own, length in zip(advantages, LENGTHS, strict=True)]
    return expanded, [own.tolist() for own in returns or []]


def test_a_group_that_lacks_samples_is_centred_on_those_that_are_there():
    # Group 0: mean 1/3; group 1 has one trajectory, which is its own mean. Deviation of (2/3, -1/3, -1/3, 0): 1/sqrt(6).
    baseline, _ = advantages_of("reinforce++-baseline")
    expected = [2 / 3 * 6**0.5, -1 / 3 * 6**0.5, -1 / 3 * 6**0.5, 0.0]
    assert [own[0] for own in baseline] == pytest.approx(expected)
    # Deviation of group 0: sqrt(2)/3.
    normalised, _ = advantages_of("grpo")
    assert [own[0] for own in normalised] == pytest.approx([2**0.5, -(0.5**0.5), -(0.5**0.5), 0.0])
    plain, _ = advantages_of("grpo", grpo_std=False)
    assert [own[0] for own in plain] == pytest.approx([2 / 3, -1 / 3, -1 / 3, 0.0])


def test_reinforce_plus_plus_is_whitened_over_the_batchs_tokens():
    # Rewards at tokens: 1, 0 0, 0 0 0, 1 1: mean 3/8, deviation sqrt(15)/8.
    advantages, _ = advantages_of("reinforce++")
    for own, reward, length in zip(advantages, REWARDS.tolist(), LENGTHS, strict=True):
        assert own == pytest.approx([(reward - 3 / 8) / (15**0.5 / 8)] * length)


@pytest.mark.parametrize("estimator", ["gae", "vtrace"])
def test_a_critics_advantages_are_whitened_over_the_batchs_tokens(estimator: str):
    # V = 0.5: +0.5 at the 3 tokens of rewarded trajectories, -0.5 at the 5 others: mean -1/8, deviation sqrt(15)/8.
    advantages, returns = advantages_of(estimator, values=0.5)
    for own, target, reward, length in zip(advantages, returns, REWARDS.tolist(), LENGTHS, strict=True):
        # V-trace's advantage of a token looks one token ahead: r + v' - V, and v' is the reward here as well.
        assert own == pytest.approx([(reward - 0.5 + 1 / 8) / (15**0.5 / 8)] * length)
        assert target == pytest.approx([reward] * length)


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        # A_2 = 1 - 0.5; A_1 = 0.5 * 0.5 - 0 + 0.5 * 0.25 * A_2; returns are A + V.
        ("gae", [0.3125, 1.0]),
        # Ratios 4 and 0.5: rho = (2, 0.5), c_1 = 0.25 * 1. v_2 = 0.5 + 0.5 * (1 - 0.5);
        # v_1 = 0 + 2 * (0.5 * 0.5 - 0) + 0.5 * 0.25 * 0.25.
        ("vtrace", [0.53125, 0.75]),
    ],
)
def test_discount_lambda_and_caps_are_those_of_the_configuration(estimator: str, expected: list[float]):
    caps = {"vtrace_rho_cap": 2.0, "vtrace_c_cap": 1.0} if estimator == "vtrace" else {}
    algorithm = AlgorithmConfig.model_validate({"advantage": estimator, "gamma": 0.5, "gae_lambda": 0.25} | caps)
    values, log_ratios = torch.tensor([0.0, 0.5]), torch.tensor([4.0, 0.5]).log()
    one = torch.ones(1, dtype=torch.float64)
    _, returns = batch_advantages(algorithm, one, torch.zeros(1, dtype=torch.int64), [values], [log_ratios], [2])
    assert returns is not None
    assert returns[0].tolist() == pytest.approx(expected)


def test_only_grpos_length_term_scales_tokens():
    lengths = torch.tensor([1, 3])
    assert length_scale(AlgorithmConfig(advantage="grpo"), lengths).tolist() == pytest.approx([2.0, 2 / 3])
    for algorithm in (AlgorithmConfig(advantage="grpo", grpo_length=False), AlgorithmConfig()):
        assert length_scale(algorithm, lengths).tolist() == [1.0, 1.0]


@pytest.fixture(scope="module")
def model() -> GPT2LMHeadModel:
    """Of an architecture that computes in float64 throughout (others normalise in float32)."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=24, n_positions=32, n_embd=16, n_layer=1, n_head=2, initializer_range=0.3)
    return GPT2LMHeadModel(config).double().eval()


@pytest.fixture(scope="module")
def micro() -> MicroBatch:
    """Four trajectories with tool output between sampled tokens, at a temperature of 0.7."""
    generator = torch.Generator().manual_seed(1)
    items = []
    for length in (9, 7, 12, 4):
        response = torch.randint(1, 24, (length,), generator=generator).tolist()
        items.append(of_tokens([1, 2, 3], response, [1, 1, *[0] * (length - 3), 1], temperature=0.7))
    advantages = [torch.randn(3, generator=generator) for _ in items]
    [packed] = micro_batches(items, advantages, 1000)
    return packed


def assert_gradient_is_the_slope(
    loss: Callable[[dict[str, torch.Tensor]], torch.Tensor], module: torch.nn.Module
) -> None:
    """Compares the gradient by every parameter tensor with central differences along a random direction, in float64."""
    parameters = {name: parameter.detach().clone().requires_grad_() for name, parameter in module.named_parameters()}
    names = list(parameters)
    gradients = torch.autograd.grad(loss(parameters), list(parameters.values()))
    generator = torch.Generator().manual_seed(2)
    step = 1e-6
    with torch.no_grad():
        for name, gradient in zip(names, gradients, strict=True):
            direction = torch.randn(gradient.shape, generator=generator, dtype=torch.float64)
            ahead, behind = (
                loss(parameters | {name: parameters[name] + side * step * direction}).item() for side in (1, -1)
            )
            slope = (gradient * direction).sum().item()
            assert (ahead - behind) / (2 * step) == pytest.approx(slope, rel=1e-5, abs=1e-6), name


ALGORITHMS = {
    "decoupled": {"weight_cap": 1.2},
    "decoupled, weights off": {"token_weights": False},
    "ppo": {"loss": "ppo"},
    "dual clip": {"dual_clip": 1.4},
    "band": {"sequence_band": (0.5, 1.1), "kl_coefficient": 0.5},
    "grpo": {"advantage": "grpo", "kl_coefficient": 0.1},
}


def slow_loss(
    algorithm: AlgorithmConfig,
    micro: MicroBatch,
    logprobs: torch.Tensor,
    proximal: torch.Tensor,
    reference: torch.Tensor,
    scale: torch.Tensor,
) -> tuple[float, float, float]:
    """The loss as algorithms.md writes it, token by token; the tokens that a clip stops; the KL to the reference."""
    behaviour, rows, advantages = micro.behaviour_logprobs, micro.sequences.tolist(), micro.advantages.tolist()
    low, high = algorithm.sequence_band or (0.0, math.inf)
    loss, stopped, kl = 0.0, 0, 0.0
    for i, row in enumerate(rows):
        own = micro.sequences == row
        kept = low <= math.exp(float((proximal - behaviour)[own].mean())) <= high
        advantage = advantages[i] * kept
        weight = 1.0
        if algorithm.loss == "decoupled_ppo" and algorithm.token_weights:
            weight = min(math.exp(proximal[i] - behaviour[i]), algorithm.weight_cap)
        ratio = math.exp(logprobs[i] - (behaviour if algorithm.loss == "ppo" else proximal)[i])
        clipped = min(max(ratio, 1 - algorithm.clip_low), 1 + algorithm.clip_high)
        objective = min(ratio * advantage, clipped * advantage)
        if algorithm.dual_clip is not None and advantage < 0:
            objective = max(objective, algorithm.dual_clip * advantage)
        stopped += objective != ratio * advantage
        q = math.exp(reference[i] - logprobs[i])
        kl += q - 1 - math.log(q)
        loss += float(scale[i]) * (algorithm.kl_coefficient * (q - 1 - math.log(q)) - weight * objective)
    return loss, stopped, kl


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_policys_loss_is_the_formula_and_its_gradient_the_slope(
    name: str, model: GPT2LMHeadModel, micro: MicroBatch
):
    algorithm = AlgorithmConfig.model_validate(ALGORITHMS[name])

    def logprobs(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        logits = functional_call(model, parameters, kwargs={"input_ids": micro.input_ids, "use_cache": False}).logits
        logits = logits.flatten(0, 1)[micro.index] / micro.temperatures[:, None].double()
        return logits.log_softmax(dim=-1).gather(1, micro.targets[:, None]).squeeze(1)

    generator = torch.Generator().manual_seed(3)
    now = logprobs(dict(model.named_parameters())).detach()

    def beside(spread: float) -> torch.Tensor:
        return now + spread * torch.randn(now.shape, generator=generator, dtype=torch.float64)

    proximal, reference = beside(0.4), beside(0.3)
    # Trajectories whose behaviour differs by a little, and by much: inside and outside of the band.
    offset = torch.tensor([0.02, -0.5, 0.0, 0.6], dtype=torch.float64)[micro.sequences]
    own = MicroBatch(**vars(micro) | {"behaviour_logprobs": proximal + offset})
    scale = length_scale(algorithm, torch.bincount(micro.sequences) + torch.arange(4))[micro.sequences]

    def loss(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        kl_reference = reference if algorithm.kl_coefficient else None
        return objective(algorithm, own, logprobs(parameters), proximal, kl_reference, scale)[0]

    value, sums = objective(algorithm, own, now, proximal, reference, scale)
    expected, stopped, kl = slow_loss(algorithm, own, now, proximal, reference, scale)
    assert value.item() == pytest.approx(expected, rel=1e-6)
    assert 0 < stopped < len(now)
    assert sums == pytest.approx({"clip_fraction": stopped, "reference_kl": kl}, rel=1e-6)
    assert_gradient_is_the_slope(loss, model)


def objective(
    algorithm: AlgorithmConfig,
    micro: MicroBatch,
    logprobs: torch.Tensor,
    proximal: torch.Tensor,
    reference: torch.Tensor | None,
    scale: torch.Tensor,
) -> tuple[torch.Tensor, dict[str, float]]:
    """Returns `policy_objective` of a micro-batch."""
    return policy_objective(
        algorithm,
        logprobs,
        proximal_logprobs=proximal,
        behaviour_logprobs=micro.behaviour_logprobs,
        reference_logprobs=reference,
        advantages=micro.advantages,
        scale=scale,
        sequences=micro.sequences,
    )


@pytest.mark.parametrize("clip", [None, 0.1])
def test_the_critics_gradient_is_the_slope_of_its_loss(clip: float | None, model: GPT2LMHeadModel, micro: MicroBatch):
    critic = TokenValues(model.transformer)
    torch.nn.init.normal_(critic.head.weight, generator=torch.Generator().manual_seed(4))
    now = critic(micro.input_ids, micro.index).detach()
    old = now + torch.linspace(-0.3, 0.3, len(now))
    returns = (torch.arange(len(now)) % 2).double()

    def values(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        # As the module does, but in float64 to the end.
        body = {name.removeprefix("body."): each for name, each in parameters.items() if name.startswith("body.")}
        hidden = functional_call(model.transformer, body, kwargs={"input_ids": micro.input_ids, "use_cache": False})
        flat = hidden.last_hidden_state.flatten(0, 1)[micro.index]
        return torch.nn.functional.linear(flat, parameters["head.weight"], parameters["head.bias"]).squeeze(1)

    torch.testing.assert_close(values(dict(critic.named_parameters())).float(), now)
    if clip is not None:
        assert 0 < value_loss(now, old, returns, clip)[1]["value_clip_fraction"] < 1
    assert_gradient_is_the_slope(lambda parameters: value_loss(values(parameters), old, returns, clip)[0], critic)


def test_a_trajectory_outside_the_band_has_no_loss_and_the_others_keep_theirs(micro: MicroBatch):
    count = len(micro.targets)
    proximal = torch.full((count,), -2.0)
    outlier = micro.sequences == 1
    own = MicroBatch(**vars(micro) | {"behaviour_logprobs": proximal - 0.7 * outlier})
    logprobs = (proximal + 0.01).requires_grad_()
    gradients = []
    for band in ((0.5, 1.9), (0.5, 2.1)):
        algorithm = AlgorithmConfig(sequence_band=band)
        loss, _ = objective(algorithm, own, logprobs, proximal, None, torch.ones(count))
        gradients.append(torch.autograd.grad(loss, logprobs)[0])
    masked, whole = gradients
    # exp(0.7) is 2.01.
    assert not masked[outlier].any()
    assert whole[outlier].all()
    assert torch.equal(masked[~outlier], whole[~outlier])
