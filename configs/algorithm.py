"""The algorithm's part of the schema: what is trained on, how it is judged, what is minimised."""

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from configs.section import Fraction, Section

EFFECTIVE_WITH: dict[str, dict[str, tuple[str, ...]]] = {
    "advantage": {
        "gamma": ("gae", "vtrace"),
        "gae_lambda": ("gae", "vtrace"),
        "vtrace_rho_cap": ("vtrace",),
        "vtrace_c_cap": ("vtrace",),
        "grpo_std": ("grpo",),
        "grpo_length": ("grpo",),
    },
    "loss": {"token_weights": ("decoupled_ppo",)},
}
"""Fields that only some choices of another field read; a value that nothing would read is refused."""


class AlgorithmConfig(Section):
    """Advantages, policy loss and off-policy correction; each formula with its source is in algorithms.md.

    A field that the chosen advantage or loss does not read keeps its default: another value is refused.
    """

    advantage: Literal["reinforce++-baseline", "reinforce++", "grpo", "gae", "vtrace"] = "reinforce++-baseline"
    """`reinforce++-baseline`: reward minus the group's mean, over the batch's deviation. `reinforce++`: reward, whitened
    over the batch. `grpo`: reward minus the group's mean, over the group's deviation. `gae`, `vtrace`: with a critic (see
    `learner.critic`), whitened over the batch."""
    gamma: Fraction = 1.0
    """Discount of one sampled token, in `gae` and `vtrace`."""
    gae_lambda: Fraction = 1.0
    """Lambda of `gae` and `vtrace`: 1 trusts the reward alone, 0 the critic alone."""
    vtrace_rho_cap: PositiveFloat = 1.0
    """V-trace's rho-bar, the truncation of the ratio in its temporal differences."""
    vtrace_c_cap: PositiveFloat = 1.0
    """V-trace's c-bar, the truncation of the ratio in its traces."""
    grpo_std: bool = True
    """Divide by the group's standard deviation in `grpo`; off is Dr. GRPO's."""
    grpo_length: bool = True
    """Average the loss over each trajectory's tokens first in `grpo`; off averages over all tokens, as all others do."""
    loss: Literal["decoupled_ppo", "ppo"] = "decoupled_ppo"
    """`decoupled_ppo`: clipped against the proximal policy, weighted by the truncated importance weight to the behaviour
    policy. `ppo`: clipped straight against the behaviour policy."""
    clip_low: Fraction = 0.2
    """Lower clip: the ratio counts down to 1 - clip_low."""
    clip_high: PositiveFloat = 0.28
    """Upper clip: the ratio counts up to 1 + clip_high."""
    dual_clip: Annotated[float, Field(gt=1.0)] | None = None
    """A token with a negative advantage counts at most this many times; above 1 + clip_high, null for no bound."""
    token_weights: bool = True
    """Weigh tokens by the importance weight in `decoupled_ppo`; off, the weights are only measured."""
    weight_cap: PositiveFloat = 2.0
    """Truncation of the importance weight of the proximal against the behaviour policy."""
    sequence_band: tuple[PositiveFloat, PositiveFloat] | None = None
    """Lowest and highest geometric mean, over a trajectory's tokens, of the ratio of the proximal (in `ppo` the current) to
    the behaviour policy; a trajectory outside has no loss. Null masks none."""
    kl_coefficient: NonNegativeFloat = 0.0
    """Weight of the k3 estimate of the KL divergence to the model that the run began with; above 0 the learner holds a
    frozen copy of it."""
    minibatches: PositiveInt = 2
    """Optimiser steps per batch."""

    @property
    def has_critic(self) -> bool:
        """Returns whether the advantages need a critic."""
        return self.advantage in ("gae", "vtrace")

    @property
    def group_relative(self) -> bool:
        """Returns whether an advantage is relative to its group, which then needs two trajectories."""
        return self.advantage in ("reinforce++-baseline", "grpo")

    @model_validator(mode="after")
    def effective(self) -> Self:
        for choice, fields in EFFECTIVE_WITH.items():
            for name, values in fields.items():
                chosen, default = getattr(self, choice), type(self).model_fields[name].default
                if chosen not in values and getattr(self, name) != default:
                    raise ValueError(
                        f"learner.algorithm.{name} has no effect with {choice} {chosen}, only with "
                        f"{' or '.join(values)}: leave it at {default}"
                    )
        return self

    @model_validator(mode="after")
    def ordered(self) -> Self:
        if self.dual_clip is not None and self.dual_clip <= 1.0 + self.clip_high:
            raise ValueError("learner.algorithm.dual_clip must be above 1 + clip_high")
        if self.sequence_band is not None and not self.sequence_band[0] <= 1.0 <= self.sequence_band[1]:
            raise ValueError("learner.algorithm.sequence_band must be a lower bound up to 1 and an upper one from 1")
        return self


class FiltersConfig(Section):
    """Says what of a finished group is not trained on. Each reason is counted: `filtered_*` in metrics.md."""

    no_signal: bool = True
    """Leave out groups whose rewards are all equal, where advantages are relative to the group: they carry no gradient."""
    accuracy_band: tuple[Fraction, Fraction] | None = None
    """Lowest and highest share of correct answers of a group, ends included; others are left out. Null keeps all."""
    overlong: bool = False
    """Leave out trajectories that were cut at their token budget: their reward says little about what they began."""
    void_turns: bool = False
    """Leave out trajectories with a turn that has neither a whole code block nor an answer."""
    hallucinated_output: bool = False
    """Leave out trajectories in which the model wrote an output block by itself."""

    @model_validator(mode="after")
    def ordered(self) -> Self:
        if self.accuracy_band is not None and self.accuracy_band[0] > self.accuracy_band[1]:
            raise ValueError("learner.filters.accuracy_band must be a lower and an upper bound")
        return self
