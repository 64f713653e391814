"""The parts of docs/benchmarks.md about the CPU: programs side by side, and quantised weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from goals import Found, found

_NAMES = {"135m": "135M", "1b": "1.1B"}

GOALS_HEAD = """## The goals of the CPU engine

Tokens/s of Cleave over those of another program with the same checkpoint, threads and prompts, each side with
the kind of weights that is named, in one run; ratios of medians. Shapes of about 135 million ("135M") and 1.1
billion ("1.1B") parameters with random weights; a shape without a row has not been measured. The figures
behind the rows, and how many repetitions they are of, are under "Side by side"."""


def goals(records: Iterable[Mapping[str, Any]]) -> str:
    """The section on the goals; empty where nothing of them was measured."""
    measured = [record["figures"] for record in records]
    rows = [
        [
            item.against,
            item.weights,
            _NAMES.get(item.shape, item.shape),
            item.what,
            _amount(item),
            f"{item.at_least:g}{_unit(item)}",
            "met" if item.is_met else "**missed**",
        ]
        for item in found(measured)
    ]
    if not rows:
        return ""
    head = ["against", "Cleave's weights", "shape", "what", "measured", "goal, at least", ""]
    notes = "".join(f" {note}" for note in _notes(measured))
    return f"{GOALS_HEAD}{notes}\n\n{table(head, rows)}"


def side_by_side(figures: Mapping[str, Any]) -> str:
    """One run: a column for each side, and one for each of Cleave's weights over each of the peer's."""
    sides = figures["sides"]
    names = [f"{side['program']} {side['weights']}" for side in sides]
    mine = [index for index, side in enumerate(sides) if side["program"] == "Cleave"]
    pairs = [(one, other) for one in mine for other in range(len(sides)) if other not in mine]
    head = ["phase", "batch", *names, *(_ratio_title(sides, pair) for pair in pairs)]
    rows = []
    for row in figures["rows"]:
        speeds = [side["tokens_per_s"] for side in row["sides"]]
        ratios = [f"{speeds[one] / speeds[other]:.2f}" for one, other in pairs]
        cells = [cell(row["phase"], side) for side in row["sides"]]
        rows.append([row["phase"], row["batch"], *cells, *ratios])
    bandwidths = [side["bandwidth"] / 1e9 for row in figures["rows"] for side in row["sides"]]
    title = (
        f"**{_NAMES.get(figures['shape'], figures['shape'])}**, {figures['threads']} threads, prompt "
        f"{figures['prompt']}, output {figures['output']}, {_rounds(figures['repetitions'])}, as many "
        "as the minutes allowed; tokens/s, and for "
        "decoding the % of the bandwidth, which was "
        f"{min(bandwidths):.1f} to {max(bandwidths):.1f} GB/s."
    )
    for name, (same, tokens) in figures["same_tokens"].items():
        title += (
            f" Cleave float32 and {name}: the same token in {same:,} of {tokens:,} places up to the first "
            "that differs."
        )
    title += "".join(f" {note}" for note in _notes([figures]))
    return f"{title}\n\n{table(head, rows)}"


def quantization(figures: Mapping[str, Any]) -> str:
    """What quantising costs in quality, and gains in size and speed."""
    speeds = [name for name in figures["rows"][0] if name.startswith(("prefill_", "decode_"))]
    rows = [
        [
            row["way"],
            f"{row['bytes'] / 1e6:.2f}",
            "" if row["kl"] is None else f"{row['kl']:.5f}",
            "" if row["perplexity_ratio"] is None else f"{row['perplexity_ratio']:.4f}",
            f"{row['right']} of {row['known']}",
            *(f"{row[name]:,.0f}" for name in speeds),
        ]
        for row in figures["rows"]
    ]
    head = ["weights", "MB", "KL, nats", "perplexity ratio", "known answers"]
    head += [name.replace("_", ", batch ") for name in speeds]
    title = (
        f"{figures['threads']} threads, prompt {figures['prompt']}, output {figures['output']}, medians of "
        f"{figures['rounds']}{'*' if figures['disturbed'] else ''}.\n\n"
    )
    return title + table(head, rows)


def cell(phase: str, side: Mapping[str, Any]) -> str:
    """Such as "49.3 (87)": tokens/s, and for decoding the percentage of the bandwidth."""
    share = f" ({side['percent_of_bandwidth']:.0f})" if phase == "decode" else ""
    return f"{side['tokens_per_s']:,.1f}{share}" + ("*" if side["disturbed"] else "")


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def _notes(figures: Iterable[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(note for one in figures for note in one.get("notes", ())))


def _ratio_title(sides: Sequence[Mapping[str, Any]], pair: tuple[int, int]) -> str:
    one, other = (sides[index]["weights"] for index in pair)
    return f"{one} / {other}"


def _amount(item: Found) -> str:
    return f"{item.value:.{item.digits}f}{_unit(item)}"


def _unit(item: Found) -> str:
    return " %" if item.unit != "x" else "x"


def _rounds(repetitions: int) -> str:
    return "one repetition" if repetitions == 1 else f"medians of {repetitions} repetitions"
