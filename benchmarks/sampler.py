"""What choosing the next tokens costs, beside one pass over the same logits at the machine's bandwidth.

The whole call of the sampler is timed, for a batch whose requests all ask for the same. Before each call the
logits are written anew, as an engine does. `passes` is its time over that of reading the logits once at the
bandwidth of a stream that no cache holds, measured in the same run, in turn with the rest.

Logits are normal: with a deviation of 4 some tens of tokens have nearly all of the probability, as in a
language model; `flat` has a deviation of 1, and 90 % of the probability are tens of thousands of tokens: the
hardest case of top-p.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import numpy as np
from record import save
from rich.console import Console
from rich.table import Table
from sampler_kinds import HISTORY
from sampler_kinds import KINDS as SAMPLED

from cleave.runtime.bench.limits import CpuProbe
from cleave.runtime.bench.quiet import BUSY, OthersWatch
from cleave.runtime.sampling.sampler import Sampler
from cleave.runtime.sampling.state import SamplingState
from cleave.runtime.sampling_params import SamplingDefaults, SamplingParams
from cleave.threads import physical_cores

GOALS = {"greedy": 3.0, "temperature": 3.0, "top-p 0.9": 8.0, "top-p 0.9, flat": 8.0}
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    **SAMPLED,
    "logprobs 5": {"temperature": 0.8, "logprobs": 5},
}


class Case:
    """One batch of one kind."""

    def __init__(self, kind: str, vocab: int, batch: int) -> None:
        self.kind, self.vocab, self.batch = kind, vocab, batch
        generator = np.random.default_rng(0)
        self._logits = generator.standard_normal((batch, vocab), np.float32)
        self._logits *= 1 if "flat" in kind else 4
        self._buffer = np.empty_like(self._logits)
        tokens = generator.integers(0, vocab, (batch, HISTORY))
        states = [_state(kind, vocab, index, row.tolist()) for index, row in enumerate(tokens)]
        self._states = [None if state.is_plain else state for state in states]
        self.seconds: list[float] = []

    @property
    def bytes(self) -> int:
        """Of the logits."""
        return self._logits.nbytes

    def run(self, sampler: Sampler) -> None:
        """Sample once, and keep the time."""
        np.copyto(self._buffer, self._logits)
        began = time.perf_counter()
        sampler.sample(self._buffer, self._states)
        self.seconds.append(time.perf_counter() - began)

    def figures(self, bandwidth: float, *, disturbed: bool) -> dict[str, Any]:
        """One row of the table."""
        microseconds = statistics.median(self.seconds) * 1e6
        one_pass = self.bytes / bandwidth * 1e6
        return {
            "kind": self.kind,
            "vocab": self.vocab,
            "batch": self.batch,
            "us": round(microseconds, 1),
            "pass_us": round(one_pass, 1),
            "passes": round(microseconds / one_pass, 1),
            "goal": GOALS.get(self.kind),
            "disturbed": disturbed,
        }


def _state(kind: str, vocab: int, seed: int, tokens: list[int]) -> SamplingState:
    params = SamplingParams(seed=seed, **KINDS[kind]).resolved(SamplingDefaults())
    state = SamplingState(params, tokens[: HISTORY // 2], vocab)
    for token in tokens[HISTORY // 2 :]:
        state.accept(token)
    return state


def measure(
    vocabs: list[int], batches: list[int], threads: int, repetitions: int
) -> tuple[float, list[dict[str, Any]]]:
    """The bandwidth in bytes a second, and a row for each case; all of them are timed in turn."""
    sampler, probe = Sampler(threads), CpuProbe(threads)
    bandwidths, rows = [], []
    for vocab in vocabs:
        for batch in batches:
            cases = [Case(kind, vocab, batch) for kind in KINDS]
            for case in cases:
                case.run(sampler)
                case.seconds.clear()
            with OthersWatch() as watch:
                here = []
                for repetition in range(repetitions):
                    here.append(probe.measure().bandwidth)
                    # The probe has left the caches cold for whoever comes first.
                    cases[-1].run(sampler)
                    cases[-1].seconds.pop()
                    turn = repetition % len(cases)
                    for case in cases[turn:] + cases[:turn]:
                        case.run(sampler)
            bandwidths += here
            disturbed = watch.cores > BUSY
            rows += [case.figures(statistics.median(here), disturbed=disturbed) for case in cases]
    probe.close()
    return statistics.median(bandwidths), rows


def main() -> None:
    """Measure, print the table, write results/sampler.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vocab", default="32000,128256")
    parser.add_argument("--batch", default="1,8,64")
    parser.add_argument("--threads", type=int, default=physical_cores())
    parser.add_argument("--repetitions", type=int, default=9)
    arguments = parser.parse_args()
    vocabs = [int(vocab) for vocab in arguments.vocab.split(",")]
    batches = [int(batch) for batch in arguments.batch.split(",")]
    bandwidth, rows = measure(vocabs, batches, arguments.threads, arguments.repetitions)
    figures = {
        "benchmark": "sampler",
        "threads": arguments.threads,
        "repetitions": arguments.repetitions,
        "bytes_per_s": round(bandwidth),
        "rows": rows,
    }
    table = Table(title=f"Sampler, {arguments.threads} threads, read {bandwidth / 1e9:.1f} GB/s")
    for column in ("kind", "vocab", "batch", "us", "one pass", "passes", "goal"):
        table.add_column(column, justify="left" if column == "kind" else "right")
    for row in rows:
        goal = "" if row["goal"] is None else f"{row['goal']:.0f}"
        mark = "*" if row["disturbed"] else ""
        table.add_row(
            row["kind"],
            f"{row['vocab']:,}",
            str(row["batch"]),
            f"{row['us']:,.0f}",
            f"{row['pass_us']:,.1f}",
            f"{row['passes']:.1f}{mark}",
            goal,
        )
    console = Console()
    console.print(table)
    console.print(f"written to {save('sampler', figures)}")


if __name__ == "__main__":
    main()
