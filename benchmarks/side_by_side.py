"""Peers and Cleave on one checkpoint in one run: interleaved, with ratios of medians.

Each side is a program with one kind of weights. A repetition takes fresh random prompts for every batch
size, and times all sides one after the other, in turns first: until every prompt has its first token, and
once more with `--output` tokens after it. Prefill is batch * prompt tokens over the first time, decode
batch * output tokens over the difference. All tokens are generated greedily through each side's public
interface, detokenisation included where that has it; end-of-sequence tokens are ignored. Before a side is
timed, threads that spin get time to stop, other processes to end what they do, and the machine's limits are
measured, with as many threads.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from contenders import OURS, Cleave, Contender, MakePeer, Prompts, chosen, same, title
from record import save
from report_cpu import cell
from rich.console import Console
from rich.table import Table
from shapes import NAMES
from workshop import KEPT, Workshop

from cleave.errors import BenchError, CleaveError
from cleave.export.artifact import Artifact
from cleave.runtime.bench.counts import ModelShape, total
from cleave.runtime.bench.limits import CpuProbe, Limits
from cleave.runtime.bench.lockstep import decode_steps, prefill_steps
from cleave.runtime.bench.phase import Phase, Run, middle_limits
from cleave.runtime.bench.quiet import BUSY, OthersWatch
from cleave.runtime.bench.ranges import numbers
from cleave.threads import use_one_thread_pool

_WARM_UP = 8
"""Tokens of the repetition that is not counted."""
_SETTLE = 0.3
"""Seconds after which no library's threads spin any more."""
_FIRST_TOKENS = (3, 4.0)
"""A prefill is timed so often, or until so many seconds have gone."""


def parser(description: str | None, *, peer: str, ours: str) -> argparse.ArgumentParser:
    """The options that all side-by-side scripts share; `peer` and `ours` are the weights by default."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--peer", default=peer, help="the peer's kinds of weights")
    options.add_argument("--ours", default=ours, help=f"Cleave's: {', '.join(OURS)}")
    options.add_argument("--shape", choices=NAMES, default="135m")
    options.add_argument("--batch", default="1,8")
    options.add_argument("--prompt", type=int, default=128)
    options.add_argument("--output", type=int, default=128)
    options.add_argument("--repetitions", type=int, default=5)
    options.add_argument("--minutes", type=float, help="begin no repetition that would take longer")
    options.add_argument(
        "--patience",
        type=float,
        default=120.0,
        help="seconds to wait for other processes, in all; what they disturb after that is marked",
    )
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--engine", default=None)
    options.add_argument("--attention", default="cpu")
    options.add_argument("--work", type=Path, default=KEPT, help="where checkpoints and the like are kept")
    options.add_argument("--name", default=None, help="of the result; default: vs_PEER_SHAPE")
    return options


def main(peer_name: str, make_peer: MakePeer, kinds: Sequence[str], arguments: argparse.Namespace) -> None:
    """Measure, print the table, write results/vs_PEER_SHAPE.json; `kinds` are the peer's kinds of weights."""
    try:
        # One pool, as the `cleave` command has it; now, since the first session would decide on its size.
        use_one_thread_pool(arguments.threads)
        figures = side_by_side(peer_name, make_peer, kinds, arguments)
        if figures is None:
            return
    except (CleaveError, ValueError) as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    console = Console()
    console.print(table(figures))
    name = arguments.name or f"vs_{peer_name}_{arguments.shape}"
    console.print(f"written to {save(name, figures)}", soft_wrap=True)


def side_by_side(
    peer_name: str, make_peer: MakePeer, kinds: Sequence[str], arguments: argparse.Namespace
) -> dict[str, Any] | None:
    """The figures of one run; None for no repetitions, which only make the files and warm up.

    Raises ValueError for options, and what exporting and loading raise.
    """
    ours, peers = chosen(arguments.ours, tuple(OURS), "--ours"), chosen(arguments.peer, kinds, "--peer")
    batches = numbers("batch", arguments.batch)
    files = Workshop(arguments.work, arguments.shape)
    # The counts need the shape, which an artifact of any kind has; that of float32 says it most plainly.
    artifact = Artifact.open(files.artifact("float32"), verify=False)
    make: list[tuple[MakePeer, str]] = [
        *((Cleave, one) for one in ours),
        *((make_peer, one) for one in peers),
    ]
    sides = [build(weights, files, arguments, batches[-1]) for build, weights in make]
    match = _Match(sides, ModelShape.of(artifact), artifact.manifest.vocab_size, arguments, batches)
    done = match.play(arguments.repetitions, arguments.minutes)
    for side in sides:
        side.close()
    if not done:
        return None
    return {
        "benchmark": "side_by_side",
        "peer": peer_name,
        "shape": arguments.shape,
        "prompt": arguments.prompt,
        "output": arguments.output,
        "threads": arguments.threads,
        "repetitions": done,
        "sides": [
            {"program": side.program, "weights": side.weights.name, "item_bytes": side.weights.item_bytes}
            for side in sides
        ],
        "notes": list(dict.fromkeys(side.note for side in sides if side.note)),
        "same_tokens": match.same_tokens,
        "rows": match.rows(),
    }


class _Match:
    """All sides over the same prompts, again and again."""

    def __init__(
        self,
        sides: Sequence[Contender],
        shape: ModelShape,
        vocab: int,
        arguments: argparse.Namespace,
        batches: Sequence[int],
    ) -> None:
        self._sides, self._vocab, self._arguments, self._batches = sides, vocab, arguments, batches
        self._probe = CpuProbe(arguments.threads)
        self._patience: float = arguments.patience
        self._phases = {
            (title(side), batch): _phases(shape, side, arguments, batch)
            for side in sides
            for batch in batches
        }
        self.same_tokens: dict[str, tuple[int, int]] = {}
        """Of sides with the same float32 weights: tokens of each peer that Cleave generated too, and all."""

    def play(self, repetitions: int, minutes: float | None) -> int:
        """Warm up, and measure; gives back how often."""
        self._repeat(0, _WARM_UP, counted=False)
        began = time.monotonic()
        for repetition in range(1, repetitions + 1):
            self._repeat(repetition, self._arguments.output, counted=True)
            average = (time.monotonic() - began) / repetition
            if minutes is not None and (repetition + 1) * average > minutes * 60:
                return repetition
        return repetitions

    def rows(self) -> list[dict[str, Any]]:
        """The figures of every phase and batch size, side by side."""
        self._probe.close()
        return [
            {
                "phase": ("prefill", "decode")[index],
                "batch": batch,
                "sides": [_row(self._phases[title(side), batch][index], side) for side in self._sides],
            }
            for index in (0, 1)
            for batch in self._batches
        ]

    def _repeat(self, repetition: int, output: int, *, counted: bool) -> None:
        for batch in self._batches:
            generator = np.random.default_rng([repetition, batch])
            prompts = generator.integers(0, self._vocab, (batch, self._arguments.prompt)).tolist()
            answers: dict[str, Prompts] = {}
            for side in self._sides if repetition % 2 else self._sides[::-1]:
                answers[title(side)], runs = _time(side, prompts, output, self._quiet_limits())
                if counted:
                    for phase, run in zip(self._phases[title(side), batch], runs, strict=True):
                        if run is not None:
                            phase.runs.append(run)
            if counted:
                self._compare(answers)

    def _quiet_limits(self) -> Limits:
        """The machine's limits, once nobody else uses it."""
        time.sleep(_SETTLE)
        while self._patience > 0:
            with OthersWatch() as watch:
                time.sleep(_SETTLE)
            if watch.cores <= BUSY:
                break
            self._patience -= _SETTLE
        return self._probe.measure()

    def _compare(self, answers: dict[str, Prompts]) -> None:
        mine = next((answers[title(side)] for side in self._sides if title(side) == "Cleave float32"), None)
        for side in self._sides:
            if mine is not None and side.program != "Cleave" and side.weights.item_bytes == 4:
                agreed, tokens = same(mine, answers[title(side)])
                before = self.same_tokens.get(title(side), (0, 0))
                self.same_tokens[title(side)] = (before[0] + agreed, before[1] + tokens)


def table(figures: dict[str, Any]) -> Table:
    """All sides; a row for each phase and batch size."""
    view = Table(
        title=f"{figures['shape']}, prompt {figures['prompt']}, output {figures['output']}, "
        f"{figures['threads']} threads, {figures['repetitions']} repetitions",
        caption="tokens/s; decode with % of the bandwidth; *: other processes used the processor",
    )
    titles = [f"{side['program']} {side['weights']}" for side in figures["sides"]]
    for name in ("phase", "batch", *titles):
        view.add_column(name, justify="left" if name == "phase" else "right")
    for row in figures["rows"]:
        view.add_row(row["phase"], str(row["batch"]), *(cell(row["phase"], side) for side in row["sides"]))
    return view


def _phases(
    shape: ModelShape, side: Contender, arguments: argparse.Namespace, batch: int
) -> tuple[Phase, Phase]:
    """The prefill in one step; decoding reads the cache in 4 bytes a value on every side, which flatters none
    by more than its cache."""
    prompt, output = arguments.prompt, arguments.output
    item: dict[str, Any] = {"weight_item": side.weights.item_bytes, "kv_item": 4}
    prefill = total(shape.work(step, batch, **item) for step in prefill_steps(batch, prompt, batch * prompt))
    decode = total(shape.work(step, batch, **item) for step in decode_steps(batch, prompt, output))
    dtype = side.weights.computes_in or "float32"
    return (
        Phase("prefill", batch, batch * prompt, prefill, dtype),
        Phase("decode", batch, batch * output, decode, dtype),
    )


def _time(
    side: Contender, prompts: Prompts, output: int, limits: Limits
) -> tuple[Prompts, tuple[Run, Run | None]]:
    """The answers, the prefill and the decoding; None where someone disturbed the first run more than the
    longer one."""
    with OthersWatch() as watch:
        firsts, until = [], time.perf_counter() + _FIRST_TOKENS[1]
        while not firsts or (len(firsts) < _FIRST_TOKENS[0] and time.perf_counter() < until):
            firsts.append(_seconds(lambda: side.generate(prompts, 1)))
        answers: Prompts = []
        whole = _seconds(lambda: answers.extend(side.generate(prompts, 1 + output)))
    first = statistics.median(firsts)
    decode = Run((whole - first,), limits, watch.cores) if whole > first else None
    return answers, (Run((first,), limits, watch.cores), decode)


def _seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def _row(phase: Phase, side: Contender) -> dict[str, Any]:
    if not phase.runs:
        raise BenchError(
            f"no repetition of batch {phase.batch} was left undisturbed enough to tell decoding from the "
            "prefill; raise --output or --repetitions, or end what else runs"
        )
    row = phase.row()
    bandwidth = middle_limits([run.limits for run in phase.runs]).bandwidth
    row |= {"bandwidth": bandwidth, "percent_of_bandwidth": row["bytes_per_s"] / bandwidth * 100}
    if side.weights.computes_in is None:
        row["percent_of_limit"] = None
    return row
