"""The forms that a growth curve may have. All are offset + scale * shape(x): straight in two parameters, so that a fit
has to search the shape's own parameters alone.

Fits count x in units of the largest x that they saw, the X of the power law's formula: u = x / X. `Parameter.unit` says how
a parameter gets back to x's own unit.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from scaling.data import Floats


@dataclass(frozen=True)
class Parameter:
    """One parameter of a form."""

    name: str
    unit: int = 0
    """Power of the unit of x in the parameter: 1 for a place on the x axis, -1 for a slope."""
    low: float = -np.inf
    high: float = np.inf


@dataclass(frozen=True)
class Form:
    """A curve with at most two shape parameters."""

    name: str
    formula: str
    linear: tuple[Parameter, ...]
    """Offset, and scale unless the form is constant."""
    shape_parameters: tuple[Parameter, ...]
    shape: Callable[[Floats, Floats], Floats]
    """(u [n], theta [K, S]) to [K, n]."""
    grid: Callable[[], Floats]
    """Starting points [K, S] of the search over the shape's parameters."""

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """Returns all parameters, linear ones first."""
        return self.linear + self.shape_parameters

    def mean(self, u: Floats, values: Floats) -> Floats:
        """Returns the curve [n] at u = x / unit."""
        if len(self.linear) == 1:
            return np.full(len(u), values[0])
        return values[0] + values[1] * self.shape(u, values[None, 2:])[0]


def _power(u: Floats, theta: Floats) -> Floats:
    return np.maximum(u, 1e-12)[None] ** theta[:, :1]


def _saturating(u: Floats, theta: Floats) -> Floats:
    return -np.expm1(-u[None] / theta[:, :1])


def _logistic(u: Floats, theta: Floats) -> Floats:
    return expit((u[None] - theta[:, :1]) / theta[:, 1:])


def _logistic_grid() -> Floats:
    middle, width = np.meshgrid(np.linspace(-0.2, 1.6, 25), np.geomspace(0.01, 0.8, 14))
    return np.column_stack([middle.ravel(), width.ravel()])


def _no_shape() -> Floats:
    return np.zeros((1, 0))


CONSTANT = Form("constant", "a", (Parameter("a"),), (), lambda u, theta: np.zeros((len(theta), len(u))), _no_shape)
LINEAR = Form(
    "linear",
    "a + b x",
    (Parameter("a"), Parameter("b", -1)),
    (),
    lambda u, theta: np.broadcast_to(u, (len(theta), len(u))),
    _no_shape,
)
POWER = Form(
    "power law",
    "a + b (x / X)^c",
    (Parameter("a"), Parameter("b")),
    (Parameter("c", 0, -4.0, 6.0),),
    _power,
    lambda: np.concatenate([-np.geomspace(0.05, 3.0, 14), np.geomspace(0.05, 5.0, 20)])[:, None],
)
SATURATING = Form(
    "saturating exponential",
    "a + b (1 - exp(-x / t))",
    (Parameter("a"), Parameter("b")),
    (Parameter("t", 1, 0.01, 5.0),),
    _saturating,
    lambda: np.geomspace(0.02, 4.0, 24)[:, None],
)
LOGISTIC = Form(
    "logistic",
    "a + b / (1 + exp(-(x - m) / s))",
    (Parameter("a"), Parameter("b")),
    (Parameter("m", 1, -0.5, 2.0), Parameter("s", 1, 0.005, 1.0)),
    _logistic,
    _logistic_grid,
)

FORMS = (CONSTANT, LINEAR, POWER, SATURATING, LOGISTIC)
"""All forms, the simplest first: of forms that describe the data equally well the first is chosen."""
