"""The goals of the CPU engine, and what the side-by-side results say of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SHAPES = ("135m", "1b")
BATCHES = (1, 8)
_PEERS = ("onnxruntime_genai", "llama_cpp", "transformers")
"""Where figures of Cleave alone are taken from, the first that has them."""

Figures = Mapping[str, Any]


@dataclass(frozen=True)
class Goal:
    """Cleave at least so many times as fast as the best of a peer's kinds of weights."""

    peer: str
    """As results/vs_PEER_SHAPE.json has it."""
    ours: str
    theirs: tuple[str, ...]
    phase: str
    at_least: float


GOALS = (
    Goal("transformers", "float32", ("float32",), "decode", 1.6),
    Goal("transformers", "float32", ("float32",), "prefill", 1.2),
    Goal("transformers", "int8", ("float32", "bfloat16"), "decode", 3.0),
    Goal("transformers", "int8", ("bfloat16",), "prefill", 1.0),
    Goal("onnxruntime_genai", "float32", ("fp32",), "decode", 1.0),
    Goal("onnxruntime_genai", "float32", ("fp32",), "prefill", 1.0),
    Goal("onnxruntime_genai", "int4", ("int4",), "decode", 1.1),
    Goal("onnxruntime_genai", "int8", ("int4",), "prefill", 2.0),
    Goal("llama_cpp", "int8", ("Q8_0",), "decode", 1.5),
    Goal("llama_cpp", "int8", ("Q8_0",), "prefill", 2.0),
    Goal("llama_cpp", "int4", ("Q4_0",), "decode", 1.2),
)
BATCH_GOALS = {"int4": 2.5, "int8": 4.0, "float32": 5.0}
"""Tokens/s of batch 8 over those of batch 1."""
BANDWIDTH_GOALS = {"float32": 80.0, "int4": 60.0}
"""% of the bandwidth that decoding reaches at batch 1 with the 1.1B shape."""


@dataclass(frozen=True)
class Found:
    """A goal and what was measured."""

    against: str
    weights: str
    shape: str
    what: str
    value: float
    at_least: float
    unit: str = "x"

    @property
    def digits(self) -> int:
        """How many are printed behind the point."""
        return 2 if self.unit == "x" else 0

    @property
    def is_met(self) -> bool:
        """Of the figure as it is printed."""
        return round(self.value, self.digits) >= self.at_least


def found(results: Sequence[Figures]) -> Iterator[Found]:
    """Every goal that the side-by-side figures say something of."""
    by_peer = {(result["peer"], result["shape"]): result for result in results}
    for goal in GOALS:
        for shape in SHAPES:
            result = by_peer.get((goal.peer, shape))
            for batch in BATCHES if result else ():
                mine = speed(result, "Cleave", goal.ours, goal.phase, batch)
                others = [speed(result, None, kind, goal.phase, batch) for kind in goal.theirs]
                known = [speed for speed in others if speed]
                if mine and len(known) == len(others):
                    name = _program(result)
                    best = f"{name} {' or '.join(goal.theirs)}"
                    what = f"{goal.phase}, batch {batch}"
                    yield Found(best, goal.ours, shape, what, mine / max(known), goal.at_least)
    yield from _alone(by_peer)


def _alone(by_peer: Mapping[tuple[str, str], Figures]) -> Iterator[Found]:
    for shape in SHAPES:
        for weights, at_least in BATCH_GOALS.items():
            for result in _those_of(by_peer, shape):
                one, eight = (speed(result, "Cleave", weights, "decode", batch) for batch in (1, 8))
                if one and eight:
                    what = "decode, batch 8 over batch 1"
                    yield Found("its own batch of 1", weights, shape, what, eight / one, at_least)
                    break
    for weights, at_least in BANDWIDTH_GOALS.items():
        for result in _those_of(by_peer, "1b"):
            side = _side(result, "Cleave", weights, "decode", 1)
            if side:
                share = side["percent_of_bandwidth"]
                yield Found("the bandwidth", weights, "1b", "decode, batch 1", share, at_least, "%")
                break


def _those_of(by_peer: Mapping[tuple[str, str], Figures], shape: str) -> Sequence[Figures]:
    return [by_peer[peer, shape] for peer in _PEERS if (peer, shape) in by_peer]


def _program(result: Figures) -> str:
    return next(side["program"] for side in result["sides"] if side["program"] != "Cleave")


def speed(result: Figures, program: str | None, weights: str, phase: str, batch: int) -> float | None:
    """Tokens/s of one side; `program` None: the peer. None where it was not measured."""
    side = _side(result, program, weights, phase, batch)
    return side["tokens_per_s"] if side else None


def _side(result: Figures, program: str | None, weights: str, phase: str, batch: int) -> Figures | None:
    """The figures of one side; `program` None: the peer."""
    wanted = program or _program(result)
    for row in result["rows"]:
        if (row["phase"], row["batch"]) == (phase, batch):
            for side, figures in zip(result["sides"], row["sides"], strict=True):
                if (side["program"], side["weights"]) == (wanted, weights):
                    return figures
    return None
