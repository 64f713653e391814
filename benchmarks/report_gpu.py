"""The parts of docs/benchmarks.md about the engine on a GPU."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from report_cpu import table


def engine(figures: Mapping[str, Any]) -> str:
    """Decode steps by batch, a prefill, the starts of a process, and kernels where they were recorded."""
    head = ["batch", "ms a step", "tokens/s", "% of limit", "alone, ms", "% of limit"]
    rows = [
        [
            row["batch"],
            f"{row['step'] * 1e3:.2f}",
            f"{row['tokens_per_second']:,.0f}",
            f"{row['percent_of_limit']:.0f}",
            f"{row['engine_alone'] * 1e3:.2f}",
            f"{row['engine_alone_percent_of_limit']:.0f}",
        ]
        for row in figures["decode"]
    ]
    prefill = figures["prefill"]
    title = (
        f"**{figures['shape']}**, {figures['dtype']}{_fixed(figures)}, one {figures['gpu']}; a copy moves "
        f"{figures['copy_bytes_per_second'] / 1e12:.2f} TB/s, a matrix product does "
        f"{figures['matmul_flops_per_second'] / 1e12:,.0f} TFLOP/s, a step reads "
        f"{figures['weight_bytes_read_by_a_step'] / 1e9:.1f} GB of weights. Prefill, {prefill['batch']} x "
        f"{prefill['prompt']}: {prefill['tokens_per_second']:,.0f} tokens/s, "
        f"{prefill['percent_of_limit']:.0f} % of limit."
    )
    starts = ", ".join(f"{parts['process']:.1f} s {name}" for name, parts in figures["start"].items())
    if starts:
        title += f" Start of a process: {starts}."
    parts = [f"{title}\n\n{table(head, rows)}"]
    parts += [
        _kernels(f"kernels of a step of batch {batch}", found)
        for batch, found in figures.get("kernels", {}).items()
    ]
    return "\n".join(parts)


def kernels(figures: Mapping[str, Any]) -> str:
    """The kernels of a step of some batch sizes."""
    measured = {name: found for name, found in figures.items() if isinstance(found, Mapping)}
    title = f"**{figures['shape']}**, one {figures['gpu']}, after prompts of {figures['prompt']}.\n"
    parts = [
        _kernels(f"{name}, {found['step'] * 1e3:.2f} ms a step", found["kernels"])
        for name, found in measured.items()
    ]
    return "\n".join([title, *parts])


def start_up(figures: Mapping[str, Any]) -> str:
    """The parts of every start."""
    title = f"**{figures['shape']}**, {figures['layers']} layers, {figures['dtype']}, one {figures['gpu']}.\n"
    return f"{title}\n{table(['', *figures['starts']], start_up_rows(figures['starts']))}"


def start_up_rows(starts: Mapping[str, Any]) -> list[list[str]]:
    """A part in each, and in every way of starting its seconds, with how often where that is not once."""
    rows = [["whole", *(f"{one['seconds']:.1f}" for one in starts.values())]]
    for part in dict.fromkeys(part for one in starts.values() for part in one["parts"]):
        found = [one["parts"].get(part) for one in starts.values()]
        rows.append([part, *("" if one is None else _part(one) for one in found)])
    for count in ("kernels_compiled", "kernels_found"):
        rows.append([count.replace("_", " "), *(str(one[count]) for one in starts.values())])
    return rows


def _part(part: Mapping[str, Any]) -> str:
    times = int(part["times"])
    return f"{part['seconds']:.2f}" if times == 1 else f"{part['seconds']:.2f} ({times})"


def mixed(figures: Mapping[str, Any]) -> str:
    """Of two loads the kinds of steps and the kernels of some of them."""
    parts = [f"**{figures['shape']}**, {figures['dtype']}, one {figures['gpu']}.\n"]
    for load, rate in (("prefill", "tokens_per_s"), ("mixed", "output_tokens_per_s")):
        found = figures[load]
        profile = found["profile"]
        parts += [
            f"*{load}: {found[rate]:,.0f} {rate.replace('_', ' ').replace(' per s', '/s')}, "
            f"{found['seconds']:.2f} s*\n",
            _rows(found["steps"]),
            f"*kernels of a part of it: {profile['busy_ms']:,.0f} ms, and {profile['rested_ms']:.1f} ms in "
            "which none ran*\n",
            _rows(profile["kernels"]),
        ]
    return "\n".join(parts)


def launches(figures: Mapping[str, Any]) -> str:
    """What the host and the whole need for some steps, by how their pieces are launched."""
    return f"**{figures['layers']} narrow layers**, one {figures['gpu']}.\n\n{_rows(figures['steps'])}"


def _rows(rows: Sequence[Mapping[str, Any]]) -> str:
    head = [name.replace("_", " ") for name in rows[0]]
    return table(head, ([_cell(value) for value in row.values()] for row in rows))


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.2f}"
    return f"{value:,}" if isinstance(value, int) else f"`{value}`"


def _kernels(title: str, rows: Iterable[Mapping[str, Any]]) -> str:
    lines = [[f"`{row['kernel']}`", row["launches"], f"{row['microseconds']:,.0f}"] for row in rows]
    return f"*{title}*\n\n{table(['kernel', 'launches', 'us in all'], lines)}"


def _fixed(figures: Mapping[str, Any]) -> str:
    return ", deterministic" if figures.get("deterministic") else ""
