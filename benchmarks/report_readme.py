"""The table of README.md: Cleave beside other programs on a CPU."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from goals import BATCHES, speed
from report_cpu import table

SHAPE = "135m"
BEGIN, END = "<!-- made by `make report` -->", "<!-- up to here -->"
_ROWS = (
    ("transformers", "float32", "float32"),
    ("transformers", "bfloat16", "int8"),
    ("onnxruntime_genai", "fp32", "float32"),
    ("onnxruntime_genai", "int4", "int4"),
    ("llama_cpp", "Q8_0", "int8"),
    ("llama_cpp", "Q4_0", "int4"),
)
"""A peer, its kind of weights, Cleave's."""


def filled(readme: str, records: Iterable[Mapping[str, Any]]) -> str:
    """README.md with the table as the side-by-side results have it.

    Raises ValueError where the marks between which it stands are missing.
    """
    if not re.search(f"{BEGIN}.*{END}", readme, re.DOTALL):
        raise ValueError(f"README.md lacks {BEGIN} or {END}")
    made = f"{BEGIN}\n\n{_section(records)}\n{END}"
    return re.sub(f"{BEGIN}.*{END}", lambda _: made, readme, flags=re.DOTALL)


def _section(records: Iterable[Mapping[str, Any]]) -> str:
    found = {figures["peer"]: figures for figures in (one["figures"] for one in records) if _is_it(figures)}
    head = ["against", "Cleave", *(f"{phase}, batch 1 / 8" for phase in ("prefill", "decode"))]
    rows = []
    for peer, theirs, ours in _ROWS:
        figures = found.get(peer)
        if figures is not None:
            program = next(side["program"] for side in figures["sides"] if side["program"] != "Cleave")
            ratios = [_ratios(figures, program, theirs, ours, phase) for phase in ("prefill", "decode")]
            rows.append([f"{program}, {theirs.replace('fp32', 'float32')}", ours, *ratios])
    if not rows:
        return "Not measured yet.\n"
    counts = sorted({figures["repetitions"] for figures in found.values()})
    rounds = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
    notes = dict.fromkeys(note for figures in found.values() for note in figures.get("notes", ()))
    return f"{table(head, rows)}\n" + " ".join([f"Ratios of medians of {rounds} rounds.", *notes]) + "\n"


def _is_it(figures: Mapping[str, Any]) -> bool:
    return bool(figures["shape"] == SHAPE)


def _ratios(figures: Mapping[str, Any], program: str, theirs: str, ours: str, phase: str) -> str:
    pairs = [
        (speed(figures, "Cleave", ours, phase, batch), speed(figures, program, theirs, phase, batch))
        for batch in BATCHES
    ]
    return " / ".join(f"{one / other:.2f}" if one and other else "" for one, other in pairs)
