"""How far a run is from its reference, place by place, and which place is the first to blame."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cleave.errors import CompareError
from cleave.runtime.compare.trace import Array, Place, Trace, places

TOLERANCE = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 4e-2, "int8": 8e-2, "int4": 8e-2}
"""Largest error at a place, by the engine's dtype, or how the artifact is quantised: then activations are
rounded to 8 bits, and a piece's linear layers add up to a few percent. float32: a sound engine shows about
1e-6, a weight that is 2 % off about 1e-2. float16 and bfloat16: a few units in the last place (2^-10 and
2^-7)."""
END_TO_END = 10
"""How many times the tolerance the logits may be off after all layers have added to the error."""
_LEAST_UPDATE = 0.1
"""A residual is judged by what its layer adds, or by this share of itself where the layer adds less:
below that, rounding of the residual would count as the layer's error."""


@dataclass(frozen=True, slots=True)
class Difference:
    """The errors at one place. Both are of the worst row: |got - reference| / |reference|."""

    place: Place
    new: float
    """Error where the reference's values go into the piece or the attention that computes it."""
    end_to_end: float
    """Error of the run by itself, with all that it inherited."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One engine over one attention backend, against its reference."""

    name: str
    reference: str
    dtype: str
    tolerance: float
    differences: tuple[Difference, ...]
    same_tokens: int
    """Rows whose likeliest token is the reference's."""
    tokens: int

    @property
    def diverging(self) -> tuple[Place, ...]:
        """Places with a new error beyond the tolerance, less those that follow from another one.

        The residual of a layer and the q, k, v of the next one come out of the same piece, as do the last
        residual and the logits: where the residual is off, so are they.
        """
        beyond = [item.place for item in self.differences if not item.new <= self.tolerance]
        residuals = {place.layer for place in beyond if place.tensor == "residual" and place.layer >= 0}
        piece_mates = ("q", "k", "v", "logits")
        return tuple(
            place for place in beyond if place.tensor not in piece_mates or place.layer - 1 not in residuals
        )

    @property
    def first(self) -> Place | None:
        """The first place to blame; None where there is none."""
        return next(iter(self.diverging), None)

    @property
    def logits_beyond(self) -> bool:
        """Whether the logits, end to end, are off by more than `END_TO_END` tolerances."""
        return not self.differences[-1].end_to_end <= END_TO_END * self.tolerance

    @property
    def agrees(self) -> bool:
        """Whether nothing is beyond the tolerance."""
        return self.first is None and not self.logits_beyond


def tolerance_of(dtype: str, given: float | None) -> float:
    """The tolerance for an engine's dtype, unless one was given. Raises CompareError for none."""
    if given is not None:
        if not 0 < given < 1:
            raise CompareError(f"tolerance is {given}; it is a relative error: more than 0, less than 1")
        return given
    if dtype not in TOLERANCE:
        raise CompareError(f"there is no tolerance for {dtype}; give one with --tolerance")
    return TOLERANCE[dtype]


def compare_traces(
    reference: Trace, forced: Trace, free: Trace, names: tuple[str, str], dtype: str, tolerance: float
) -> Comparison:
    """Judge a run: `forced` got the reference's values at every cut, `free` went its own way.

    `names` are those of the run and of the reference.
    """
    differences = tuple(
        Difference(
            place,
            worst_row(forced[place] - reference[place], _yardstick(reference, place)),
            worst_row(free[place] - reference[place], _lengths(reference[place])),
        )
        for place in places(reference.layers)
    )
    logits = Place(reference.layers, "logits")
    same = free[logits].argmax(-1) == reference[logits].argmax(-1)
    return Comparison(*names, dtype, tolerance, differences, int(same.sum()), reference.tokens)


def worst_row(error: Array, yardstick: Array) -> float:
    """The largest |error row| / yardstick row; infinite where a value is not a number.

    A row counts at least as much as the middle one, so that a row of almost nothing does not decide.
    error [rows, width], yardstick [rows].
    """
    lengths = _lengths(error)
    if not np.isfinite(lengths).all():
        return float("inf")
    at_least = np.maximum(yardstick, np.median(yardstick))
    ratios = np.divide(lengths, at_least, out=np.where(lengths > 0, np.inf, 0.0), where=at_least > 0)
    return float(ratios.max())


def _yardstick(reference: Trace, place: Place) -> Array:
    """[rows] what a new error is measured by: the row, or what the layer added to it."""
    lengths = _lengths(reference[place])
    if place.tensor != "residual" or place.layer < 0:
        return lengths
    update = reference[place] - reference[Place(place.layer - 1, "residual")]
    yardstick: Array = np.maximum(_lengths(update), _LEAST_UPDATE * lengths)
    return yardstick


def _lengths(rows: Array) -> Array:
    lengths: Array = np.sqrt(np.square(rows, dtype=np.float64).sum(-1))
    return lengths
