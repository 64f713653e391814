"""Where the time of large steps goes: prompts alone, and requests that come and go, through the whole LLM.

Two loads of a shape with random weights: `prefill`, a batch of prompts of 512 tokens of which one token each
is asked, and `mixed`, 400 requests at once with prompts of 64 to 1024 tokens and outputs of 64 to 512. Of
each the kinds of steps, their time on the GPU, how long it rested before them, and what the host did
meanwhile; then the kernels of a part of such a load, by share, and how long none ran between two of them.

A step is `prefill` without decoding requests, `decode` without prompts, and else `mixed`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_shapes import GPU_SHAPES
from random_artifact import random_artifact
from record import save
from rich.console import Console
from rich.table import Table
from torch.autograd import DeviceType
from vs_vllm import LENGTH, MIXED, MOST_SEQUENCES, PROMPT

from cleave import LLM, SamplingParams

PREFILL_BATCH = 32
SHORT = (16, 97)
"""Tokens that are generated where kernels are looked at: most steps then have a prompt."""
WINDOWS = {"prefill": (4, 8), "mixed": (30, 60)}
"""Steps of each load of which the kernels are recorded, from the first one on."""
KERNELS = 16
KINDS = ("prefill", "mixed", "decode")


@dataclass(slots=True)
class TimedStep:
    """A step of the loop; seconds."""

    chunks: int
    tokens: int
    decoding: int
    """Requests that decode in it."""
    scheduled: float
    """When its launch began, on the host's clock."""
    launch: float
    """Of the host, until everything was launched."""
    began: torch.cuda.Event
    ended: torch.cuda.Event
    waited: float = 0.0
    """Of the host, for its tokens."""

    @property
    def kind(self) -> str:
        """One of `KINDS`."""
        if self.decoding == self.chunks:
            return "decode"
        return "mixed" if self.decoding else "prefill"


class TimedSteps:
    """Stands before the stepper of an LLM and times what goes through it."""

    def __init__(self, llm: LLM) -> None:
        self.steps: list[TimedStep] = []
        self._profile: torch.profiler.profile | None = None
        """It has to be started by the thread that launches."""
        self._window = (0, 0)
        stepper: Any = llm._thread._loop._stepper
        self._launch, self._fetch = stepper.launch, stepper.fetch
        stepper.launch, stepper.fetch = self.launch, self.fetch
        self._of: dict[int, TimedStep] = {}

    def launch(self, step: Any, before: Any) -> Any:
        """See `Stepper.launch`."""
        if self._profile is not None and len(self.steps) in self._window:
            torch.cuda.synchronize()
            (self._profile.start if len(self.steps) == self._window[0] else self._profile.stop)()
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        clock = time.perf_counter()
        began.record()
        launched = self._launch(step, before)
        ended.record()
        decoding = sum(chunk.start >= len(chunk.sequence.prompt) for chunk in step)
        tokens = sum(chunk.count for chunk in step)
        taken = time.perf_counter() - clock
        self.steps.append(TimedStep(len(step), tokens, decoding, clock, taken, began, ended))
        self._of[id(launched)] = self.steps[-1]
        return launched

    def fetch(self, launched: Any, outcome: Any) -> None:
        """See `Stepper.fetch`."""
        clock = time.perf_counter()
        self._fetch(launched, outcome)
        self._of.pop(id(launched)).waited = time.perf_counter() - clock

    @contextmanager
    def recording(self, window: tuple[int, int]) -> Iterator[torch.profiler.profile]:
        """Record the kernels of some of the steps that are run meanwhile; there must be more of them."""
        self.steps.clear()
        self._window = window
        self._profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
        try:
            yield self._profile
        finally:
            self._profile = None
            self.steps.clear()

    def rows(self) -> list[dict[str, Any]]:
        """What the steps so far were, by kind, and forget them; milliseconds."""
        steps = list(self.steps)
        self.steps.clear()
        torch.cuda.synchronize()
        busy, rest = [], []
        other: list[float | None] = []
        for index, step in enumerate(steps):
            before = steps[index - 1] if index else None
            rest.append(0.0 if before is None else before.ended.elapsed_time(step.began))
            busy.append(step.began.elapsed_time(step.ended))
            after = steps[index + 1] if index + 1 < len(steps) else None
            waited = 0.0 if before is None else before.waited
            took = None if after is None else after.scheduled - step.scheduled
            other.append(None if took is None else took - step.launch - waited)
        total = sum(busy) + sum(rest)
        found = []
        for kind in KINDS:
            those = [index for index, step in enumerate(steps) if step.kind == kind]
            if not those:
                continue
            spent, count = sum(busy[index] for index in those), len(those)
            launch = sum(steps[index].launch for index in those) * 1e3 / count
            waited = sum(steps[index - 1].waited for index in those if index) * 1e3 / count
            known = [seconds for index in those if (seconds := other[index]) is not None]
            found.append(
                {
                    "kind": kind,
                    "steps": count,
                    "tokens": sum(steps[index].tokens for index in those),
                    "decoding": sum(steps[index].decoding for index in those),
                    "gpu_ms": spent,
                    "percent": 100 * spent / total,
                    "gpu_ms_a_step": spent / count,
                    "rested_ms": sum(rest[index] for index in those),
                    "host_launch_ms_a_step": launch,
                    "host_other_ms_a_step": sum(known) * 1e3 / max(1, len(known)),
                    "host_waits_ms_a_step": waited,
                }
            )
        return found


class Load:
    """Requests for an LLM, random token ids."""

    def __init__(self, llm: LLM, vocab: int) -> None:
        self._llm, self._vocab = llm, vocab
        self._generator = np.random.default_rng(0)

    def __call__(self, lengths: Sequence[int], outputs: Sequence[int]) -> float:
        """Seconds until all is generated."""
        prompts = [self._generator.integers(3, self._vocab, length).tolist() for length in lengths]
        params = [SamplingParams(temperature=0, max_tokens=count, ignore_eos=True) for count in outputs]
        began = time.perf_counter()
        answers = self._llm.generate(prompts, params, progress=False)
        seconds = time.perf_counter() - began
        if [len(answer.token_ids) for answer in answers] != list(outputs):
            raise RuntimeError("an answer has another length than was asked for")
        return seconds

    def prefill(self) -> float:
        """One token each after `PREFILL_BATCH` prompts."""
        return self([PROMPT] * PREFILL_BATCH, [1] * PREFILL_BATCH)

    def mixed(self, least: int = 64, most: int = 513) -> tuple[float, int]:
        """`MIXED` requests; seconds, and the tokens that came."""
        generator = np.random.default_rng(1)
        lengths = generator.integers(64, 1025, MIXED).tolist()
        outputs = generator.integers(least, most, MIXED).tolist()
        return self(lengths, outputs), sum(outputs)


def kernels(profile: torch.profiler.profile) -> dict[str, Any]:
    """Kernels by their share of the time that the GPU was busy, and how long it rested between them."""
    spans = sorted(
        (event.time_range.start, event.time_range.end, event.name)
        for event in profile.events()
        if event.device_type == DeviceType.CUDA and event.time_range.elapsed_us() > 0
    )
    by_name: dict[str, list[float]] = {}
    rested, end = 0.0, spans[0][0]
    for start, stop, name in spans:
        rested += max(0.0, start - end)
        end = max(end, stop)
        by_name.setdefault(name, []).append(stop - start)
    busy = end - spans[0][0] - rested
    rows = [
        {"kernel": name[:80], "launches": len(each), "us_each": sum(each) / len(each)}
        | {"percent": 100 * sum(each) / busy}
        for name, each in by_name.items()
    ]
    rows.sort(key=lambda row: -row["percent"])
    return {"busy_ms": busy / 1e3, "rested_ms": rested / 1e3, "kernels": rows[:KERNELS]}


def measure(llm: LLM, vocab: int, *, repeats: int = 3) -> dict[str, Any]:
    """All figures of a loaded model."""
    timed, load = TimedSteps(llm), Load(llm, vocab)
    load.prefill()
    timed.rows()
    seconds = []
    for _ in range(repeats):
        timed.steps.clear()
        seconds.append(load.prefill())
    tokens = PREFILL_BATCH * PROMPT
    figures: dict[str, Any] = {
        "prefill": {"seconds": min(seconds), "tokens_per_s": tokens / min(seconds), "steps": timed.rows()}
    }
    with timed.recording(WINDOWS["prefill"]) as profile:
        while len(timed.steps) <= WINDOWS["prefill"][1]:
            load.prefill()
    figures["prefill"]["profile"] = kernels(profile)
    taken, count = load.mixed()
    figures["mixed"] = {"seconds": taken, "output_tokens_per_s": count / taken, "steps": timed.rows()}
    with timed.recording(WINDOWS["mixed"]) as profile:
        load.mixed(*SHORT)
    figures["mixed"]["profile"] = kernels(profile)
    return figures


def table(title: str, rows: list[dict[str, Any]]) -> Table:
    """Figures for people."""
    shown = Table(title=title)
    for column in rows[0]:
        is_text = column in ("kind", "kernel")
        shown.add_column(column.replace("_", " "), justify="left" if is_text else "right")
    for row in rows:
        shown.add_row(
            *(f"{value:,.2f}" if isinstance(value, float) else str(value) for value in row.values())
        )
    return shown


def show(console: Console, shape: str, figures: dict[str, Any]) -> None:
    """Print both loads."""
    rates = {"prefill": "tokens_per_s", "mixed": "output_tokens_per_s"}
    for load, rate in rates.items():
        found = figures[load]
        title = f"{shape}, {load}: {found[rate]:,.0f} {rate.replace('_', ' ').replace(' per ', '/')}"
        console.print(table(f"{title}, {found['seconds']:.3f} s", found["steps"]))
        profile = found["profile"]
        first, last = WINDOWS[load]
        title = f"steps {first} to {last}: GPU busy {profile['busy_ms']:.1f} ms, "
        console.print(
            table(f"{title}resting {profile['rested_ms']:.1f} ms between kernels", profile["kernels"])
        )


def main() -> None:
    """Measure the shapes asked for; write results/gpu_mixed_SHAPE_h200.json for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="+", choices=GPU_SHAPES, default=list(GPU_SHAPES))
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "cleave-shapes")
    parser.add_argument("--max_tokens_per_step", type=int, default=None)
    parser.add_argument("--suffix", default="h200", help="of the result's name")
    given = parser.parse_args()
    console = Console(width=200)
    for shape in given.shapes:
        artifact = random_artifact(shape, given.folder / shape)
        dtype, config = GPU_SHAPES[shape]
        llm = LLM(
            artifact,
            "inductor",
            max_model_len=LENGTH,
            max_sequences=MOST_SEQUENCES,
            max_tokens_per_step=given.max_tokens_per_step,
            prefix_cache=False,
            verify=False,
            cache=artifact / "engines",
        )
        with llm:
            figures = {"gpu": torch.cuda.get_device_name(), "shape": shape, "dtype": dtype}
            figures |= measure(llm, config["vocab_size"])
        del llm
        show(console, shape, figures)
        console.print(f"written to {save(f'gpu_mixed_{shape}_{given.suffix}', figures)}", soft_wrap=True)


if __name__ == "__main__":
    main()
