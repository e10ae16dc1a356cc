"""The analysis on synthetic runs of known form and noise: what it estimates is there, and its intervals keep their word.

Coverage is counted over many draws. Bounds leave room for the counting error of those draws and for what is known of
intervals with estimated autocorrelation: a little under nominal in short series.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import ArrayLike

from scaling.breaks import course
from scaling.correlation import changes, correlate, lagged
from scaling.data import Floats, Points, TooLittleDataError
from scaling.fitting import fit
from scaling.forecasting import forecast
from scaling.forms import CONSTANT, FORMS, LINEAR, LOGISTIC, POWER, SATURATING, Form
from scaling.mixture import Mixture
from scaling.noise import block_draws, block_length, estimate_rho, whiten
from scaling.selection import select

CURVES: dict[Form, Callable[[Floats, int], Floats]] = {
    CONSTANT: lambda x, n: np.full(len(x), 0.3),
    LINEAR: lambda x, n: 0.1 + 0.6 * x / n,
    POWER: lambda x, n: 0.1 + 0.7 * (x / n) ** 0.4,
    SATURATING: lambda x, n: 0.05 + 0.8 * (1 - np.exp(-4 * x / n)),
    LOGISTIC: lambda x, n: 0.07 + 0.8 / (1 + np.exp(-(x / n - 0.45) / 0.08)),
}
GROWING = [form for form in FORMS if form is not CONSTANT]


def noise(rng: np.random.Generator, length: int, rho: float, sd: float) -> Floats:
    """Stationary AR(1)."""
    e = rng.standard_normal(length)
    for t in range(1, length):
        e[t] = rho * e[t - 1] + (1 - rho**2) ** 0.5 * e[t]
    return sd * e


def steps_to(last: int) -> Floats:
    return np.arange(1, last + 1).astype(np.float64)


def runs(*series: tuple[ArrayLike, ArrayLike]) -> Points:
    pairs = [(np.asarray(x, np.float64), np.asarray(y, np.float64)) for x, y in series]
    return Points.of_runs([(x, y, np.arange(1, len(x) + 1)) for x, y in pairs])


def drawn(form: Form, rng: np.random.Generator, n: int, rho: float, sd: float, seeds: int = 1) -> Points:
    x = steps_to(n)
    return runs(*((x, CURVES[form](x, n) + noise(rng, n, rho, sd)) for _ in range(seeds)))


class TestCorrelation:
    @pytest.mark.parametrize(
        ("kind", "steps", "rho", "strength", "seeds"),
        [
            ("pearson", 20, 0.0, 0.5, 1),
            ("spearman", 40, 0.5, 0.5, 2),
            ("pearson", 100, 0.5, 0.7, 1),
            ("spearman", 100, 0.8, 0.3, 1),
        ],
    )
    def test_intervals_cover_at_their_nominal_rate(self, kind, steps, rho, strength, seeds):
        rng = np.random.default_rng(1)
        # The correlation of ranks of two normal variables (Pearson 1907).
        truth = strength if kind == "pearson" else 6 / np.pi * np.arcsin(strength / 2)
        hits = 0
        for _ in range(200):
            pairs = []
            for _ in range(seeds):
                a, b = noise(rng, steps, rho, 1.0), noise(rng, steps, rho, 1.0)
                pairs.append((a, strength * a + (1 - strength**2) ** 0.5 * b))
            found = correlate(runs(*pairs), kind, draws=200)
            hits += found.low <= truth <= found.high
        assert 0.89 <= hits / 200 <= 0.99

    def test_ignoring_autocorrelation_would_not_cover(self):
        """The blocks are what makes the test above pass: single steps, resampled, miss far more often."""
        rng = np.random.default_rng(2)
        hits = 0
        for _ in range(200):
            a, b = noise(rng, 100, 0.8, 1.0), noise(rng, 100, 0.8, 1.0)
            z = [
                np.arctanh(np.corrcoef(a[index], b[index])[0, 1]) for index in block_draws(rng, 100, block=1, draws=100)
            ]
            centre, reach = np.arctanh(np.corrcoef(a, b)[0, 1]), 1.96 * np.std(z)
            hits += abs(centre) <= reach
        assert hits / 200 < 0.8

    def test_a_perfect_relation_and_its_opposite(self):
        x = np.arange(20.0)
        assert correlate(runs((x, x**3)), "spearman").value == pytest.approx(1.0)
        assert correlate(runs((x, -x)), "pearson").value == pytest.approx(-1.0)

    def test_runs_at_different_levels_are_not_mixed(self):
        """Within each run y falls with x, although the run with the larger x has the larger y."""
        rng = np.random.default_rng(3)
        x = rng.normal(size=50)
        pooled = runs((x, -x + rng.normal(0, 0.1, 50)), (x + 10, -x + 10 + rng.normal(0, 0.1, 50)))
        assert correlate(pooled, "pearson").value < -0.95
        assert np.corrcoef(pooled.x, pooled.y)[0, 1] > 0.9

    def test_a_common_trend_is_no_relation_of_changes(self):
        rng = np.random.default_rng(4)
        trend = np.linspace(0, 1, 60)
        points = runs((trend + rng.normal(0, 0.05, 60), trend + rng.normal(0, 0.05, 60)))
        assert correlate(points, "spearman").low > 0.8
        of_changes = correlate(changes(points), "spearman")
        assert of_changes.low < 0 < of_changes.high

    def test_a_lag_is_found_with_its_sign(self):
        rng = np.random.default_rng(5)
        x = rng.normal(size=80)
        y = np.concatenate([np.zeros(2), x[:-2]]) + rng.normal(0, 0.3, 80)
        best = max(lagged(runs((x, y)), "spearman", 4), key=lambda item: item.correlation.value)
        assert best.lag == 2
        assert best.correlation.low > 0.7


class TestFits:
    @pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
    def test_each_form_is_recovered(self, form):
        rng = np.random.default_rng(6)
        found = [select(drawn(form, rng, 80, 0.3, 0.02)).chosen.form for _ in range(10)]
        assert found.count(form) >= 7

    def test_parameters_come_back_in_the_units_of_x(self):
        x = steps_to(60)
        y = 0.1 + 0.7 / (1 + np.exp(-(x - 25) / 4)) + np.random.default_rng(7).normal(0, 0.005, 60)
        values = {name: (value, low, high) for name, value, low, high in fit(LOGISTIC, runs((x, y))).interval(0.99)}
        for name, truth in {"a": 0.1, "b": 0.7, "m": 25.0, "s": 4.0}.items():
            value, low, high = values[name]
            assert value == pytest.approx(truth, rel=0.1)
            assert low <= truth <= high
        slope = fit(LINEAR, runs((x * 1e6, 3 + 2e-6 * x * 1e6))).interval(0.95)[1]
        assert slope[1] == pytest.approx(2e-6)

    @pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
    @pytest.mark.parametrize(("steps", "rho", "seeds"), [(40, 0.0, 1), (60, 0.5, 1), (20, 0.3, 2)])
    def test_prediction_intervals_cover_new_measurements_at_their_nominal_rate(self, form, steps, rho, seeds):
        rng = np.random.default_rng(8)
        x = steps_to(steps)
        inside = []
        for _ in range(40):
            low, high = fit(form, drawn(form, rng, steps, rho, 0.04, seeds)).prediction(x, 0.95)
            new = CURVES[form](x, steps) + noise(rng, steps, rho, 0.04)
            inside.append(np.mean((low <= new) & (new <= high)))
        assert 0.89 <= np.mean(inside) <= 0.99

    def test_autocorrelation_is_estimated_and_removed(self):
        rng = np.random.default_rng(9)
        x = steps_to(400)
        points = runs((x, noise(rng, 400, 0.6, 1.0)), (x, noise(rng, 400, 0.6, 1.0)))
        rho = estimate_rho(points.y, points, 1)
        assert rho == pytest.approx(0.6, abs=0.08)
        white = whiten(points.y, points, rho)
        assert white.std() == pytest.approx(1.0, abs=0.1)
        assert np.corrcoef(white[:-1], white[1:])[0, 1] == pytest.approx(0.0, abs=0.1)

    def test_a_gap_between_steps_weakens_the_correlation_by_its_length(self):
        points = Points(steps_to(3), np.array([1.0, 2.0, 3.0]), np.array([0, 0, 1]), np.array([1, 4, 5]))
        # Across a gap of three steps phi is 0.5^3; the third point is another run's first.
        assert whiten(points.y, points, 0.5) == pytest.approx([1.0, (2 - 0.125) / (1 - 0.125**2) ** 0.5, 3.0])

    def test_longer_memory_makes_longer_blocks(self):
        rng = np.random.default_rng(10)
        white, slow = noise(rng, 400, 0.0, 1.0), noise(rng, 400, 0.9, 1.0)
        assert block_length([white]) <= 4 < block_length([slow]) <= 100


class TestShares:
    """Accuracies: shares of 64 responses, from 8 % to 53 % along a logistic curve."""

    N = 64
    STEPS = 40

    def share(self, rng: np.random.Generator, groups: int) -> Floats:
        """Of responses in so many groups; those of a group are right by a probability of their own."""
        p = 0.08 + 0.45 / (1 + np.exp(-(steps_to(self.STEPS) / self.STEPS - 0.5) / 0.06))
        own = p[:, None] if groups == self.N else rng.beta(4 * p, 4 * (1 - p), (groups, self.STEPS)).T
        return rng.binomial(self.N // groups, np.broadcast_to(own, (self.STEPS, groups))).sum(axis=1) / self.N

    def points(self, rng: np.random.Generator, groups: int) -> Points:
        x = steps_to(self.STEPS)
        samples = np.full(self.STEPS, float(self.N))
        runs = [(x, self.share(rng, groups), x.astype(np.int64), samples) for _ in range(2)]
        return Points.of_shares(runs)

    def coverage(self, groups: int, *, as_shares: bool) -> tuple[float, float]:
        """Of new measurements by 95 % intervals: of the first quarter, where few are right, and of the last."""
        rng = np.random.default_rng(20)
        x, inside = steps_to(self.STEPS), []
        for _ in range(150):
            points = self.points(rng, groups)
            low, high = fit(LOGISTIC, points if as_shares else replace(points, samples=None)).prediction(x, 0.95)
            new = self.share(rng, groups)
            inside.append((low <= new) & (new <= high))
        covered = np.mean(inside, axis=0)
        return float(covered[:10].mean()), float(covered[30:].mean())

    @pytest.mark.parametrize(
        ("groups", "least", "most"), [(64, 0.94, 0.985), (8, 0.9, 0.99)], ids=["single responses", "groups"]
    )
    def test_intervals_cover_where_few_are_right_and_where_half_are(self, groups, least, most):
        early, late = self.coverage(groups, as_shares=True)
        assert least <= early <= most
        assert least <= late <= most

    def test_one_deviation_for_all_would_be_too_wide_for_the_first_and_too_narrow_for_the_others(self):
        early, late = self.coverage(64, as_shares=False)
        assert early > 0.99
        assert late < 0.94

    def test_more_than_the_draw_of_responses_is_told_apart(self):
        rng = np.random.default_rng(21)
        drawn = fit(LOGISTIC, self.points(rng, 64))
        grouped = fit(LOGISTIC, self.points(rng, 8))
        assert drawn.sigma < 0.02 < grouped.sigma
        assert drawn.samples == grouped.samples == 64

    def test_noise_is_never_less_than_the_draw_of_responses(self):
        x = steps_to(self.STEPS)
        line = 0.2 + 0.6 * x / self.STEPS + np.where(x % 2, 1e-4, -1e-4)
        points = Points.of_shares([(x, line, x.astype(np.int64), np.full(len(x), 64.0))])
        fitted = fit(LINEAR, points)
        assert fitted.sigma == 0.0
        assert fitted.noise(np.array([20.0])) == pytest.approx([(0.5 * 0.5 / 64) ** 0.5], rel=0.01)
        # A step with more responses counts for more.
        outlier = points.y + np.where(x == 20, 0.5, 0.0)
        heavy, light = (replace(points, y=outlier, samples=np.where(x == 20, n, 64.0)) for n in (6400.0, 4.0))
        assert fit(CONSTANT, heavy).values[0] > fit(CONSTANT, light).values[0]


class TestForecast:
    @pytest.mark.slow
    @pytest.mark.parametrize("form", [LINEAR, POWER, SATURATING], ids=lambda form: form.name)
    def test_intervals_of_the_right_form_cover_the_second_half(self, form):
        rng = np.random.default_rng(11)
        covered = []
        for _ in range(30):
            found = forecast(drawn(form, rng, 60, 0.3, 0.04))
            covered += [item.coverage[0.95] for item in found.forecasts if item.fit.form is form]
        assert 0.88 <= np.mean(covered) <= 0.99

    @pytest.mark.slow
    @pytest.mark.parametrize("form", [LINEAR, POWER, SATURATING, LOGISTIC], ids=lambda form: form.name)
    def test_the_weighted_forecast_covers_the_second_half_of_rising_curves(self, form):
        """Shares of 64 responses. The form that the first half would choose covers 69 to 94 %."""
        rng = np.random.default_rng(5)
        x, covered = steps_to(60), []
        for _ in range(30):
            p = np.clip(CURVES[form](x, 60), 0.01, 0.99)
            measured = p + noise(rng, 60, 0.4, 1.0) * np.sqrt(p * (1 - p) / 64)
            y = np.clip(np.round(measured * 64) / 64, 0, 1)
            found = forecast(Points.of_shares([(x, y, x.astype(np.int64), np.full(60, 64.0))]))
            assert found.weighted is not None
            covered.append(found.weighted.coverage[0.95])
        assert np.mean(covered) >= 0.9

    def test_the_weighted_forecast_has_a_place_for_each_form(self):
        """Half of a rise that may level off: no form is certain, and the interval holds what each of them says."""
        found = forecast(drawn(SATURATING, np.random.default_rng(12), 60, 0.3, 0.06))
        assert found.weighted is not None
        mixture = found.weighted.fit
        assert mixture.weights.sum() == pytest.approx(1.0)
        assert (mixture.weights > 0.05).sum() >= 2
        x = np.array([60.0])
        (low,), (high,) = mixture.prediction(x, 0.95)
        for fitted, weight in zip(mixture.fits, mixture.weights, strict=True):
            if weight > 0.1:
                assert low < fitted.mean(x)[0] < high
        assert found.weighted.width[0.95] > min(item.width[0.95] for item in found.forecasts)

    def test_one_form_alone_has_its_own_interval(self):
        points = drawn(LINEAR, np.random.default_rng(3), 40, 0.2, 0.05)
        fits = [fit(LINEAR, points), fit(CONSTANT, points)]
        mixture = Mixture(fits, np.array([1.0, 0.0]))
        x = np.array([1.0, 40.0, 80.0])
        for level in (0.8, 0.95):
            for mine, theirs in zip(mixture.prediction(x, level), fits[0].prediction(x, level), strict=True):
                assert mine == pytest.approx(theirs, abs=1e-6)
        assert mixture.log_density(x, x / 40) == pytest.approx(fits[0].log_density(x, x / 40))
        # Two forms that are far apart: half of the tail lies beyond each.
        both = Mixture(fits, np.array([0.5, 0.5]))
        low, high = both.prediction(x, 0.95)
        assert low[2] == pytest.approx(fits[1].prediction(x, 0.9)[0][2], abs=1e-3)
        assert high[2] == pytest.approx(fits[0].prediction(x, 0.9)[1][2], abs=1e-3)

    def test_the_wrong_form_is_shown_to_fail(self):
        """Saturating growth, continued as a straight line."""
        found = forecast(drawn(SATURATING, np.random.default_rng(12), 80, 0.0, 0.02))
        by_name = {item.fit.form.name: item for item in found.forecasts}
        assert found.last_fitted_step == 40
        assert by_name["saturating exponential"].error < 0.05 < by_name["linear"].error
        assert by_name["linear"].coverage[0.95] < 0.5
        assert by_name["linear"].bias > 0
        assert found.chosen == "saturating exponential"

    def test_the_second_half_has_no_say_in_the_forecast(self):
        points = drawn(LINEAR, np.random.default_rng(13), 40, 0.0, 0.02)
        other = Points(points.x, np.where(points.step > 20, 9.0, points.y), points.run, points.step)
        first, second = forecast(points), forecast(other)
        assert [item.fit.values.tolist() for item in first.forecasts] == [
            item.fit.values.tolist() for item in second.forecasts
        ]
        assert first.chosen == second.chosen


class TestChangePoints:
    def dip(self, x: Floats, n: int) -> Floats:
        return 0.5 - 0.25 * np.minimum(x / (0.4 * n), 1) + 0.5 * np.maximum(x - 0.4 * n, 0) / (0.6 * n)

    @pytest.mark.parametrize(("steps", "rho"), [(20, 0.0), (40, 0.5)])
    def test_a_dip_before_a_rise_is_found_at_its_place(self, steps, rho):
        rng = np.random.default_rng(14)
        x = steps_to(steps)
        found = [course(runs((x, self.dip(x, steps) + noise(rng, steps, rho, 0.03)))) for _ in range(40)]
        assert np.mean([item.dip_then_rise for item in found]) >= 0.85
        placed = [any(b.low <= 0.4 * steps <= b.high for b in item.breaks) for item in found if item.breaks]
        assert np.mean(placed) >= 0.75

    @pytest.mark.parametrize(("steps", "rho"), [(20, 0.0), (60, 0.5)])
    def test_straight_growth_has_no_change_point_more_often_than_chance(self, steps, rho):
        rng = np.random.default_rng(15)
        found = [course(drawn(LINEAR, rng, steps, rho, 0.04)) for _ in range(40)]
        assert np.mean([len(item.breaks) > 0 for item in found]) <= 0.15
        assert not any(item.dip_then_rise for item in found)
        whole = [item.pieces[0] for item in found if not item.breaks]
        assert np.mean([piece.low < 0.6 / steps < piece.high for piece in whole]) >= 0.85

    @pytest.mark.parametrize("form", [POWER, SATURATING, LOGISTIC], ids=lambda form: form.name)
    def test_smooth_growth_has_no_change_point_more_often_than_chance(self, form):
        """Against straight lines alone every power law of 60 steps has one."""
        rng = np.random.default_rng(18)
        found = [course(drawn(form, rng, 60, 0.3, 0.04)) for _ in range(15)]
        assert sum(len(item.breaks) > 0 for item in found) <= 2
        assert not any(item.dip_then_rise for item in found)

    def test_a_rise_that_stops_is_no_dip(self):
        x = steps_to(40)
        y = np.minimum(x, 20) / 20 + np.random.default_rng(16).normal(0, 0.03, 40)
        found = course(runs((x, y)))
        assert [item.step for item in found.breaks] == pytest.approx([20], abs=2)
        assert not found.dip_then_rise


class TestRefusals:
    CONSTANT = runs((steps_to(30), np.full(30, 0.25)))
    SHORT = runs((steps_to(5), np.arange(5.0) ** 2))

    @pytest.mark.parametrize(
        "analysis",
        [lambda p: correlate(p, "spearman"), lambda p: fit(LINEAR, p), select, forecast, course],
        ids=["correlation", "fit", "selection", "forecast", "change points"],
    )
    def test_constant_and_short_series_get_a_clear_word(self, analysis):
        with pytest.raises(TooLittleDataError, match=r"y is constant at 0\.25"):
            analysis(self.CONSTANT)
        with pytest.raises(TooLittleDataError, match=r"5 steps are too few for .*, which needs \d+"):
            analysis(self.SHORT)

    def test_a_half_that_never_changed_forecasts_nothing(self):
        y = np.concatenate([np.zeros(20), np.linspace(0, 1, 20)])
        with pytest.raises(TooLittleDataError, match="constant over the first 20 steps"):
            forecast(runs((steps_to(40), y)))

    def test_noise_without_growth_is_called_flat(self):
        rng = np.random.default_rng(17)
        assert np.mean([select(drawn(CONSTANT, rng, 40, 0.0, 0.05)).flat for _ in range(10)]) >= 0.7

    def test_values_that_are_not_finite_are_left_out(self):
        points = runs((np.array([1.0, np.nan, 3.0]), np.array([1.0, 2.0, np.inf])))
        assert (points.x.tolist(), points.step.tolist()) == ([1.0], [1])
