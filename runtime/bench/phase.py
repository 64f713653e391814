"""One phase of a benchmark, measured again and again beside the machine's limits."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cleave.runtime.bench.counts import Work
from cleave.runtime.bench.limits import Limits
from cleave.runtime.bench.quiet import BUSY


@dataclass(frozen=True, slots=True)
class Run:
    """One repetition."""

    seconds: tuple[float, ...]
    """Of each step; for a prefill, of all of them together."""
    limits: Limits
    """Measured just before."""
    others: float = 0.0
    """Cores that other processes used meanwhile."""


@dataclass(slots=True)
class Phase:
    """Prefill or decode of one batch size."""

    name: str
    batch: int
    tokens: int
    """Tokens of one repetition: those of the prompts, or those generated."""
    work: Work
    """Of one repetition."""
    products_in: str
    """The dtype that the engine multiplies in."""
    runs: list[Run] = field(default_factory=list)

    def row(self) -> dict[str, Any]:
        """The figures: medians over the repetitions that nobody disturbed.

        Where fewer than half were left undisturbed all of them count, and the row says so.
        """
        runs, is_disturbed = _undisturbed(self.runs)
        seconds = statistics.median(sum(run.seconds) for run in runs)
        steps = [step for run in runs for step in run.seconds]
        low, high = np.percentile(steps, [10, 90])
        share = statistics.median(
            run.limits.seconds(self.work, self.products_in) / sum(run.seconds) for run in runs
        )
        return {
            "phase": self.name,
            "batch": self.batch,
            "tokens_per_s": self.tokens / seconds,
            "ms": statistics.median(steps) * 1e3,
            "ms_p10": float(low) * 1e3,
            "ms_p90": float(high) * 1e3,
            "bytes_per_s": self.work.bytes / seconds,
            "operations_per_s": self.work.operations / seconds,
            "percent_of_limit": share * 100,
            "bound": middle_limits([run.limits for run in runs]).bound(self.work, self.products_in),
            "repetitions": len(runs),
            "others_cores": statistics.median(run.others for run in runs),
            "disturbed": is_disturbed,
        }


def middle_limits(limits: Sequence[Limits]) -> Limits:
    """The medians of several measurements."""
    return Limits(
        statistics.median(item.bandwidth for item in limits),
        {
            dtype: statistics.median(item.operations[dtype] for item in limits)
            for dtype in limits[0].operations
        },
    )


def _undisturbed(runs: Sequence[Run]) -> tuple[Sequence[Run], bool]:
    quiet = [run for run in runs if run.others <= BUSY]
    return (quiet, False) if 2 * len(quiet) >= len(runs) else (runs, True)
