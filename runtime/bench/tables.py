"""The tables of the benchmarks on the terminal, and the notes below them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def _table(title: str, caption: str | None, **options: Any) -> Table:
    return Table(title=title, caption=caption, box=SIMPLE_HEAD, padding=0, show_edge=False, **options)


def si(value: float, unit: str) -> str:
    """12.3e9, "B/s" -> "12.3 GB/s"."""
    for size, prefix in _PREFIXES:
        if value >= size:
            return f"{value / size:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"


def phase_table(figures: Mapping[str, Any]) -> Table:
    """Prefill and decode of every batch size."""
    view = _table(
        f"{figures['source']}, {figures['engine']} + {figures['attention']}, {figures['device']}, "
        f"prompt {figures['prompt']}, output {figures['output']}",
        "ms of a whole prefill, of one decode step: median, 10 % and 90 %",
    )
    columns = ("phase", "batch", "tokens/s", "ms", "p10", "p90", "GB/s", "GFLOP/s", "% of limit")
    for name in columns:
        view.add_column(name, justify="left" if name == "phase" else "right", no_wrap=True)
    for row in figures["rows"]:
        view.add_row(
            row["phase"],
            str(row["batch"]),
            f"{row['tokens_per_s']:,.0f}",
            f"[bold]{row['ms']:.2f}[/bold]",
            f"{row['ms_p10']:.2f}",
            f"{row['ms_p90']:.2f}",
            f"{row['bytes_per_s'] / 1e9:.2f}",
            f"{row['operations_per_s'] / 1e9:,.1f}",
            _share(row),
        )
    return view


def _share(row: Mapping[str, Any]) -> str:
    """The percentage of a limit, and of which; the star is that of `notes`."""
    return f"{row['percent_of_limit']:.0f} {row['bound']}" + ("*" if row["disturbed"] else "")


def kvrun_table(figures: Mapping[str, Any]) -> Table:
    """The table of kv.run's README: what was measured here, and what was published."""
    cards = figures["published"]["cards"]
    view = _table(
        f"{figures['source']} here, {figures['published']['model']} there: prompt {figures['prompt']}, "
        f"{figures['output']} output tokens, mean of {figures['repetitions']}",
        "tokens/s, and in brackets the % of what that machine or card can do at most; a prefill counts "
        "one token for each sequence",
    )
    view.add_column("step")
    view.add_column("batch", justify="right")
    view.add_column("here\nCleave", justify="right", style="bold", no_wrap=True)
    for card in cards:
        for system in ("FlashInfer", "TGI"):
            view.add_column(f"{card['name']}\n{system}", justify="right", no_wrap=True)
    for row in figures["rows"]:
        cells = [f"{row['tokens_per_s']:,.1f} ({row['percent_of_limit']:.0f})"]
        for card in cards:
            there = next(
                (
                    item
                    for item in card["rows"]
                    if item["step"] == row["phase"] and item["batch"] == row["batch"]
                ),
                None,
            )
            for system in ("flashinfer", "tgi"):
                cells.append(
                    ""
                    if there is None
                    else f"{there[system]:,.1f} ({there[system] / there['limit_tokens_per_s'] * 100:.0f})"
                )
        view.add_row(row["phase"], str(row["batch"]), *cells)
    return view


def key_values(title: str, pairs: Iterable[tuple[str, str]]) -> Table:
    """A table of two columns."""
    view = _table(title, None, show_header=False, min_width=64)
    view.add_column()
    view.add_column(justify="right")
    for name, value in pairs:
        view.add_row(name, value)
    return view


def throughput_table(figures: Mapping[str, Any]) -> Table:
    """One run of `cleave bench throughput`."""
    return key_values(
        f"{figures['source']}, engine {figures['engine']}, attention {figures['attention']}, "
        f"{figures['device']}",
        [
            ("requests", f"{figures['requests']}, prompt {figures['prompt']}, output {figures['output']}"),
            ("seconds", f"{figures['seconds']:.2f}"),
            ("requests/s", f"{figures['requests_per_s']:.2f}"),
            ("output tokens/s", f"{figures['output_tokens_per_s']:,.0f}"),
            ("all tokens/s", f"{figures['tokens_per_s']:,.0f}"),
            ("steps", f"{figures['steps']:,}"),
            ("preemptions", str(figures["preemptions"])),
            ("prefix hits", f"{figures['cached_tokens']:,} of {figures['prompt_tokens']:,} prompt tokens"),
            ("achieved", f"{figures['bytes_per_s'] / 1e9:.2f} GB/s"),
            ("achieved", si(figures["operations_per_s"], "FLOP/s")),
            ("% of limit", _share(figures)),
        ],
    )


def serve_table(figures: Mapping[str, Any]) -> Table:
    """One run of `cleave bench serve`, by the definitions of `cleave.runtime.bench.serving`."""
    view = _table(
        f"{figures['model']}: {figures['completed']} of {figures['requests']} requests in "
        f"{figures['seconds']:.1f} s, rate {figures['rate']}",
        f"{figures['requests_per_s']:.2f} requests/s, {figures['output_tokens_per_s']:,.1f} output "
        f"tokens/s, {figures['tokens_per_s']:,.1f} tokens/s in all",
        min_width=64,
    )
    view.add_column("ms")
    for name in ("mean", "median", "p99"):
        view.add_column(name, justify="right")
    for name, values in figures["milliseconds"].items():
        view.add_row(name, *(f"{values[key]:.2f}" for key in ("mean", "median", "p99")))
    return view


def limits_line(figures: Mapping[str, Any]) -> str:
    """What percentages are taken of."""
    limits = figures["limits"]
    low, high = limits["bytes_per_s_range"]
    rates = ", ".join(
        f"{dtype} {si(rate, 'FLOP/s' if dtype != 'int8' else 'OP/s')}"
        for dtype, rate in limits["operations_per_s"].items()
    )
    return (
        f"limits, {figures['device']}: {'read' if figures['threads'] else 'copied'} "
        f"{limits['bytes_per_s'] / 1e9:,.1f} GB/s "
        f"({low / 1e9:,.1f} .. {high / 1e9:,.1f}), matrix product {rates}"
    )


def notes(figures: Mapping[str, Any]) -> list[str]:
    """What has to be known to read the percentages right."""
    lines = []
    if figures["weight_bytes"] < figures["last_level_cache_bytes"]:
        lines.append(
            f"the weights ({figures['weight_bytes'] / 2**20:.0f} MiB) fit the cache of "
            f"{figures['last_level_cache_bytes'] / 2**20:.0f} MiB: memory is no limit for this model, and "
            "more than 100 % of it is possible"
        )
    disturbed = [row for row in figures.get("rows", [figures]) if row["disturbed"]]
    if disturbed:
        lines.append(
            f"* other processes used up to {max(row['others_cores'] for row in disturbed):.1f} cores "
            "meanwhile: these figures are lower than the machine's"
        )
    return lines
