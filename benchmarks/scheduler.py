"""What scheduling costs and what it brings, in three parts:

- `host`: host time of schedule + plan + commit of a decode step, over the number of running requests,
  with real scheduler, pages and attention server, and no engine;
- `prefix`: time to first token of a prompt of `--prompt` tokens, and of a second one that shares 90 % of
  it, with the demo model;
- `chunked`: time between the tokens of 8 running requests while such a prompt arrives, with the prompt
  cut into chunks and in one piece.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from record import save
from rich.console import Console
from rows import rows_table

from cleave import LLM, SamplingParams
from cleave.export.exporter import export
from cleave.export.request import ExportRequest
from cleave.kvcache.keys import PageKeys
from cleave.kvcache.server import AttentionServer
from cleave.kvcache.spec import AttentionSpec
from cleave.kvcache.step import Chunk, StepPlan
from cleave.runtime.scheduler import Scheduler
from cleave.runtime.sequence import Sequence
from cleave.runtime.step import StepOutcome

DEMO = Path(__file__).parent.parent / "model_files" / "demo"
PAGE = 16
CONTEXT = 512
GOAL_US, GOAL_US_A_REQUEST = 60, 3
GOAL_PREFIX = 0.2


class NoBackend:
    """An attention backend that plans and runs nothing: what is left is the server's own work."""

    def __init__(self, shape: object) -> None:
        """Take the shape, as backends do."""

    def plan(self, step: StepPlan) -> None:
        """Nothing."""

    def run(self, layer: int, q: Any, k: Any, v: Any, out: Any) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def host_time(requests: int, steps: int) -> dict[str, Any]:
    """Microseconds of a decode step of `requests` sequences of about CONTEXT tokens, by part."""
    most = CONTEXT + steps + 200
    pages = requests * (most // PAGE + 1)
    server = AttentionServer(
        [AttentionSpec(4, 2, 64, 0.125)],
        backend=NoBackend,
        num_pages=pages,
        max_position=most,
        max_tokens=4096,
    )
    scheduler = Scheduler(server.pages, max_tokens=4096, max_sequences=requests)
    generator = np.random.default_rng(0)
    for name in range(requests):
        length = CONTEXT - name % PAGE  # so that they need new pages in turn, as in service
        prompt = tuple(generator.integers(0, 1000, length).tolist())
        scheduler.add(Sequence(name, prompt, steps + 200, frozenset(), 0, PageKeys(PAGE)))
    parts: dict[str, list[float]] = {"schedule": [], "plan": [], "commit": []}
    clock = time.perf_counter
    while len(parts["commit"]) < steps:
        began = clock()
        step = scheduler.schedule()
        scheduled = clock()
        server.plan([Chunk(chunk.sequence.id, chunk.start, chunk.count) for chunk in step])
        planned = clock()
        outcome = StepOutcome({chunk.sequence.id: 7 for chunk in step if chunk.samples})
        ran = clock()
        server.commit()
        scheduler.commit(outcome)
        if sum(chunk.count for chunk in step) == requests == len(step):
            parts["commit"].append(clock() - ran)
            parts["schedule"].append(scheduled - began)
            parts["plan"].append(planned - scheduled)
    medians = {name: round(statistics.median(values) * 1e6, 1) for name, values in parts.items()}
    total = round(sum(medians.values()), 1)
    goal = GOAL_US + GOAL_US_A_REQUEST * requests
    return {"requests": requests, **medians, "total_us": total, "goal_us": goal, "steps": steps}


def first_token(llm: LLM, prompt: list[int]) -> float:
    """Seconds from the call to the first token."""
    began = time.perf_counter()
    stream = llm.stream(prompt, SamplingParams(max_tokens=2, ignore_eos=True))
    next(stream)
    seconds = time.perf_counter() - began
    stream.close()
    return seconds


def prefix_reuse(artifact: Path, length: int, repetitions: int) -> dict[str, Any]:
    """Time to first token without and with 90 % of the prompt in the prefix cache."""
    generator = np.random.default_rng(1)
    first, second = [], []
    with LLM(artifact, verify=False) as llm:
        first_token(llm, generator.integers(2, 3000, length).tolist())
        for _ in range(repetitions):
            shared = generator.integers(2, 3000, length * 9 // 10).tolist()
            ends = [generator.integers(2, 3000, length - len(shared)).tolist() for _ in range(2)]
            first.append(first_token(llm, shared + ends[0]))
            second.append(first_token(llm, shared + ends[1]))
    ratio = statistics.median(b / a for a, b in zip(first, second, strict=True))
    return {
        "prompt": length,
        "shared": length * 9 // 10,
        "first_ms": round(statistics.median(first) * 1e3, 1),
        "second_ms": round(statistics.median(second) * 1e3, 1),
        "ratio": round(ratio, 3),
        "goal": GOAL_PREFIX,
        "repetitions": repetitions,
    }


def step_times(llm: LLM, prompt: list[int]) -> list[float]:
    """Seconds of each step until the first token of a prompt: for what is decoding, between two tokens."""
    seconds: list[float] = []
    loop = llm._thread
    step = loop._step

    def timed(*arguments: Any) -> None:
        began = time.perf_counter()
        step(*arguments)
        seconds.append(time.perf_counter() - began)

    loop._step = timed  # type: ignore[method-assign]
    llm.generate([prompt], SamplingParams(max_tokens=1))
    loop._step = step  # type: ignore[method-assign]
    return seconds


def while_a_prompt_arrives(artifact: Path, length: int, chunk: int, repetitions: int) -> dict[str, Any]:
    """The longest and the median time between two tokens of 8 running requests meanwhile."""
    generator = np.random.default_rng(2)
    params = SamplingParams(max_tokens=200, ignore_eos=True)
    worst, typical, arrival = [], [], []
    with LLM(artifact, verify=False, max_tokens_per_step=chunk, prefix_cache=False) as llm:
        for _ in range(repetitions):
            running = [llm.stream([0, 10 + index], params) for index in range(8)]
            for _ in range(5):
                for stream in running:
                    next(stream)
            prompt = generator.integers(2, 3000, length).tolist()
            gaps = step_times(llm, prompt)
            arrival.append(sum(gaps))
            worst.append(max(gaps))
            typical.append(statistics.median(gaps))
            for stream in running:
                stream.close()
    return {
        "max_tokens_per_step": chunk,
        "prompt": length,
        "longest_gap_ms": round(statistics.median(worst) * 1e3, 1),
        "median_gap_ms": round(statistics.median(typical) * 1e3, 1),
        "first_token_ms": round(statistics.median(arrival) * 1e3, 1),
        "repetitions": repetitions,
    }


def main() -> None:
    """Measure all three, print the tables, write results/scheduler.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", default="1,8,64,256")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--prompt", type=int, default=2000)
    parser.add_argument("--repetitions", type=int, default=5)
    arguments = parser.parse_args()
    console = Console()
    host = [host_time(requests, arguments.steps) for requests in map(int, arguments.requests.split(","))]
    console.print(rows_table("Host time of a decode step, medians in microseconds", host))
    with tempfile.TemporaryDirectory() as temporary:
        artifact = Path(temporary) / "demo"
        export(ExportRequest(str(DEMO), artifact, check=False))
        prefix = prefix_reuse(artifact, arguments.prompt, arguments.repetitions)
        console.print(rows_table("Time to first token with a shared prefix", [prefix]))
        chunked = [
            while_a_prompt_arrives(artifact, arguments.prompt, chunk, arguments.repetitions)
            for chunk in (128, 512, 4096)
        ]
    console.print(rows_table("8 running requests while a prompt arrives", chunked))
    saved = save("scheduler", {"host": host, "prefix": prefix, "chunked": chunked})
    console.print(f"written to {saved}")


if __name__ == "__main__":
    main()
