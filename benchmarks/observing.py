"""What watching costs the engine thread, with `--requests` sequences decoding:

- a step's report, with nobody observing, with metrics, and with metrics and an open page;
- the copy that an open page asks for, at most five times a second, over `--pages` pages.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from record import save
from rich.console import Console

from cleave import AsyncLLM, SamplingParams
from cleave.export.exporter import export
from cleave.export.request import ExportRequest
from cleave.runtime.engine_call import EngineState
from cleave.runtime.observer import EngineObserver, Observers
from cleave.runtime.server.live import Recorder, copy_of
from cleave.runtime.server.metrics import Metrics
from cleave.runtime.step import ScheduledChunk, StepOutcome

DEMO = Path(__file__).parent.parent / "model_files" / "demo"
FRAMES_PER_SECOND = 5


def microseconds(function: Callable[[], object], times: int) -> float:
    """The median time of a call."""
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - began)
    return round(statistics.median(seconds) * 1e6, 2)


def report_cost(state: EngineState, observers: list[EngineObserver], times: int) -> float:
    """Microseconds of the report of one decode step of all running sequences."""
    told = Observers()
    for observer in observers:
        told.add(observer)
    told.submitted([generation for generation, _ in state.answers.values()])
    sequences = [answer.sequence for _, answer in state.answers.values()]
    step = tuple(ScheduledChunk(sequence, sequence.cached - 1, 1, True) for sequence in sequences)
    outcome = StepOutcome(tokens=dict.fromkeys((sequence.id for sequence in sequences), 0))
    return microseconds(lambda: told.stepped(step, outcome, time.monotonic()), times)


async def measure(artifact: Path, requests: int, pages: int, times: int) -> dict[str, Any]:
    """All figures, taken in the engine thread between two steps."""
    page_bytes = 16 * 2 * 2 * 64 * 4 * 6
    async with AsyncLLM(artifact, kv_cache_bytes=pages * page_bytes, max_sequences=requests) as llm:
        params = SamplingParams(max_tokens=2000, ignore_eos=True)
        streams = [llm.stream([0, *range(10 + index, 400 + index)], params) for index in range(requests)]
        for stream in streams:
            await anext(stream)
        metrics = Metrics(llm)

        def all_costs(state: EngineState) -> dict[str, Any]:
            copy = microseconds(lambda: copy_of(state), times)
            return {
                "requests": requests,
                "pages": llm.stats().pages,
                "pages_used": llm.stats().pages_used,
                "us_a_step": {
                    "nobody": report_cost(state, [], times),
                    "metrics": report_cost(state, [metrics], times),
                    "metrics_and_page": report_cost(state, [metrics, Recorder()], times),
                },
                "us_a_frame": copy,
                "percent_of_the_engine_thread": round(copy * FRAMES_PER_SECOND / 1e4, 4),
            }

        figures = await llm.look(all_costs)
        for stream in streams:
            await stream.aclose()
        return figures


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--pages", type=int, default=8192)
    parser.add_argument("--times", type=int, default=300)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        export(ExportRequest(str(DEMO), Path(folder), check=False))
        figures = asyncio.run(measure(Path(folder), options.requests, options.pages, options.times))
    Console().print(figures)
    save("observing", figures)


if __name__ == "__main__":
    main()
