"""`cleave bench kvrun`: the table of kv.run's README, on this machine and beside its published columns.

As in the benchmark of text-generation-inference that the table most likely comes from: a prompt of 10
tokens, 8 output tokens, one warm-up, the mean of 10 runs, batch 1 to 32. A prefill counts one token for each
sequence; decoding counts the 7 tokens after it.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from cleave.runtime.bench.latency import LatencyRequest, Progress, measure
from cleave.runtime.bench.phase import Phase
from cleave.runtime.bench.published import BATCHES, OUTPUT, PROMPT, published

REPETITIONS = 10


def run_kvrun(
    artifact: Path,
    engine: str | None,
    attention: str | None,
    device: str | None,
    threads: int | None,
    progress: Progress = lambda done, total: None,
    repetitions: int = REPETITIONS,
) -> dict[str, Any]:
    """Measure all batches; raises what `measure` raises."""
    request = LatencyRequest(
        artifact,
        BATCHES,
        PROMPT,
        OUTPUT,
        repetitions=repetitions,
        warm_ups=1,
        engine=engine,
        attention=attention,
        device=device,
        threads=threads,
    )
    measurement = measure(request, progress)
    phases = sorted(measurement.phases, key=lambda phase: (phase.name != "prefill", phase.batch))
    figures = measurement.figures("kvrun", request)
    return figures | {
        "repetitions": repetitions,
        "rows": [_row(phase) for phase in phases],
        "published": published(),
    }


def _row(phase: Phase) -> dict[str, Any]:
    """The figures of a phase, with the throughput as the table means it: the mean over the runs."""
    tokens = phase.batch if phase.name == "prefill" else phase.tokens
    mean = statistics.mean(tokens / sum(run.seconds) for run in phase.runs)
    return phase.row() | {"tokens_per_s": mean}
