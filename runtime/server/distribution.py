"""A histogram that takes in many values at once."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from math import inf

from prometheus_client.core import HistogramMetricFamily

_ONLY = ""


class Distribution:
    """Counts by bucket; the caller sees to it that one thread at a time is in here.

    prometheus_client's own histogram takes a lock for each value; one step may bring hundreds.
    """

    def __init__(
        self,
        name: str,
        meaning: str,
        bounds: Sequence[float],
        label: str | None = None,
        values: Sequence[str] = (_ONLY,),
    ) -> None:
        """`bounds` are the upper ones, in order; with `label`, one series for each of its `values`."""
        self._name = name
        self._meaning = meaning
        self._bounds = tuple(bounds)
        self._label = label
        self._counts = {value: [0] * (len(self._bounds) + 1) for value in values}
        self._sums = dict.fromkeys(values, 0.0)

    def add(self, value: float, of: str = _ONLY) -> None:
        """Count a value; `of` is the label's."""
        self._counts[of][bisect_left(self._bounds, value)] += 1
        self._sums[of] += value

    def extend(self, values: Iterable[float]) -> None:
        """Count values, where there is no label."""
        for value in values:
            self.add(value)

    def family(self) -> HistogramMetricFamily:
        """For prometheus_client."""
        labels = [] if self._label is None else [self._label]
        family = HistogramMetricFamily(self._name, self._meaning, labels=labels)
        for value, counts in self._counts.items():
            buckets, total = [], 0
            for bound, count in zip((*self._bounds, inf), counts, strict=True):
                total += count
                buckets.append((_written(bound), float(total)))
            family.add_metric([value] if labels else [], buckets, self._sums[value])
        return family


def _written(bound: float) -> str:
    """As prometheus_client writes the bounds of its own histograms."""
    return "+Inf" if bound == inf else str(bound)


def decades(low: float, high: float) -> list[float]:
    """1, 2 and 5 of each power of ten, from `low` to `high`."""
    bounds = (float(f"{step}e{power}") for power in range(-9, 9) for step in (1, 2, 5))
    return [bound for bound in bounds if low <= bound <= high]


def powers_of_two(exponent: int) -> list[float]:
    """1, 2, 4, ... up to 2 to the `exponent`."""
    return [float(2**power) for power in range(exponent + 1)]
