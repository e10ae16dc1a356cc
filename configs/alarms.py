"""The bounds at which a run raises alarms; see `learner.alarms`."""

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from configs.section import Fraction, Section


class AlarmsConfig(Section):
    """Bounds beyond which a run raises an alarm, which changes nothing in it; null: that one is never raised."""

    steps: PositiveInt = 10
    """Newest steps that are looked at together; before there are as many, no mean over steps raises an alarm."""
    minutes: PositiveFloat = 5.0
    """Newest minutes of actors' and sandboxes' measurements that are looked at together."""
    untrained_steps: PositiveInt | None = 3
    """Steps in a row that had nothing to train on."""
    stalled_factor: PositiveFloat | None = 5.0
    """Multiple of a step's usual duration (the median of `steps`) after which the next one is late, a minute at least; not
    before the first step since the learner's start."""
    behaviour_kl: PositiveFloat | None = 0.05
    """Mean KL divergence between the learner's policy and the one that sampled, nats a token."""
    clip_fraction: Fraction | None = 0.3
    """Mean share of tokens whose gradient a clip removed."""
    truncated_rise: Fraction | None = 0.2
    """Rise of the mean share of responses that hit their token budget, from the lowest that it was."""
    no_signal: Fraction | None = 0.95
    """Share of trajectories left out because their group's rewards are all equal."""
    failed: Fraction | None = 0.2
    """Share of tickets that end as failures."""
    actor_failed: Fraction | None = 0.5
    """Share of one actor's tickets that end as failures."""
    sandbox_failed: Fraction | None = 0.1
    """Share of one sandbox's executions at which the sandbox itself fails."""
    disk_free_gib: NonNegativeFloat | None = 5.0
    """GiB that are free on the disk of the learner's folder, below which the alarm is raised."""
