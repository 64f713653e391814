"""The plots of the benchmarks, as PNG or as a page with the plot as SVG."""

from __future__ import annotations

import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cleave.errors import BenchError, MissingPackage

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".html")
# Told apart with any colour vision, and in grey (Okabe and Ito).
_COLOURS = {"prefill": "#0072B2", "decode": "#D55E00"}
_GREYS = ("#7f7f7f", "#b0b0b0")


def check_plot(path: Path | None) -> None:
    """Raise what `save_plot` would, before anything is measured."""
    if path is None:
        return
    if path.suffix not in SUFFIXES:
        raise BenchError(f"--plot is {path}; its name must end in {' or '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise BenchError(f"--plot is {path}; there is no folder {path.parent}")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise MissingPackage("matplotlib", "bench", "--plot") from None


def save_plot(figures: Mapping[str, Any], path: Path) -> None:
    """Draw the figures of one benchmark."""
    check_plot(path)
    figure = draw(figures)
    if path.suffix == ".png":
        figure.savefig(path, dpi=150)
        return
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg")
    svg = drawn.getvalue()
    title = html.escape(f"cleave bench {figures['benchmark']}")
    path.write_text(
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{title}</title>\n'
        f"<style>body {{ margin: 2em; }} svg {{ max-width: 100%; height: auto; }}</style>\n"
        f"{svg[svg.index('<svg') :]}</html>\n",
        "utf-8",
    )


def draw(figures: Mapping[str, Any]) -> Figure:
    """The figure of one benchmark, by its name."""
    drawers = {
        "latency": _draw_batches,
        "kvrun": _draw_kvrun,
        "throughput": _draw_throughput,
        "serve": _draw_serve,
    }
    return drawers[figures["benchmark"]](figures)


def _draw_batches(figures: Mapping[str, Any]) -> Figure:
    """Tokens a second and percentage of the limit, over the batch size."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    figure, (speed, share) = _panels(2, f"{_subject(figures)}, prompt {figures['prompt']}")
    for phase in ("prefill", "decode"):
        rows = [row for row in figures["rows"] if row["phase"] == phase]
        batches = [row["batch"] for row in rows]
        style: dict[str, Any] = {"color": _COLOURS[phase], "marker": "o", "label": phase}
        speed.plot(batches, [row["tokens_per_s"] for row in rows], **style)
        share.plot(batches, [row["percent_of_limit"] for row in rows], **style)
    _batch_axis(speed, figures)
    _batch_axis(share, figures)
    speed.set_yscale("log")
    speed.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    speed.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    speed.yaxis.set_minor_formatter(NullFormatter())
    speed.set_title("tokens/s")
    _percent_axis(share)
    speed.legend(frameon=False)
    return figure


def _draw_kvrun(figures: Mapping[str, Any]) -> Figure:
    """Percentages of each machine's own limit, which is what can be compared between machines."""
    there = figures["published"]
    figure, axes = _panels(2, f"{_subject(figures)} here; {there['model']} on the cards (published)")
    for axis, phase in zip(axes, ("prefill", "decode"), strict=True):
        rows = [row for row in figures["rows"] if row["phase"] == phase]
        axis.plot(
            [row["batch"] for row in rows],
            [row["percent_of_limit"] for row in rows],
            color=_COLOURS[phase],
            marker="o",
            linewidth=2.5,
            label="Cleave, here",
        )
        for card, line in zip(there["cards"], ("-", "--"), strict=True):
            published = [row for row in card["rows"] if row["step"] == phase]
            for system, label, grey in zip(("flashinfer", "tgi"), ("FlashInfer", "TGI"), _GREYS, strict=True):
                axis.plot(
                    [row["batch"] for row in published],
                    [row[system] / row["limit_tokens_per_s"] * 100 for row in published],
                    color=grey,
                    linestyle=line,
                    marker=".",
                    label=f"{card['name']}, {label}",
                )
        _batch_axis(axis, figures)
        _percent_axis(axis)
        axis.set_title(f"{phase}: % of the machine's limit")
    axes[0].legend(frameon=False, fontsize="small")
    return figure


def _draw_throughput(figures: Mapping[str, Any]) -> Figure:
    """Where the time could have gone at best, and where it went."""
    figure, (times, rates) = _panels(2, f"{_subject(figures)}, {figures['requests']} requests at once")
    limits = figures["limits"]
    seconds = figures["seconds"]
    memory = figures["bytes_per_s"] / limits["bytes_per_s"] * seconds
    compute = figures["operations_per_s"] / limits["operations_per_s"][figures["products_in"]] * seconds
    bars = times.barh(
        ["memory alone", "compute alone", "measured"],
        [memory, compute, seconds],
        color=[_GREYS[1], _GREYS[1], _COLOURS["decode"]],
        height=0.5,
    )
    times.bar_label(bars, fmt="%.1f s", padding=4)
    times.set_xlim(0, max(seconds, memory, compute) * 1.2)
    times.set_title(f"seconds, {figures['percent_of_limit']:.0f} % of the limit")
    names = ["prompt and output", "output"]
    bars = rates.barh(
        names,
        [figures["tokens_per_s"], figures["output_tokens_per_s"]],
        color=[_COLOURS["prefill"], _COLOURS["decode"]],
        height=0.33,
    )
    rates.bar_label(bars, fmt="{:,.0f}", padding=4)
    rates.set_xlim(0, figures["tokens_per_s"] * 1.2)
    rates.set_title("tokens/s")
    for axis in (times, rates):
        axis.grid(visible=False)
        axis.set_xticks([])
        axis.spines["bottom"].set_visible(False)
    return figure


def _draw_serve(figures: Mapping[str, Any]) -> Figure:
    """How large a share of requests (or gaps) was at least this fast."""
    title = f"{figures['model']}: {figures['completed']} requests, rate {figures['rate']}"
    figure, axes = _panels(4, title)
    for axis, (name, samples) in zip(axes, figures["samples_ms"].items(), strict=True):
        if not samples:
            axis.set_title(f"{name}: none")
            continue
        found = figures["milliseconds"][name]
        axis.set_title(f"{name}: median {found['median']:.1f} ms, p99 {found['p99']:.1f} ms")
        ordered = sorted(samples)
        shares = [(index + 1) / len(ordered) * 100 for index in range(len(ordered))]
        axis.step(ordered, shares, where="post", color=_COLOURS["prefill"], linewidth=2)
        axis.axvline(found["median"], color=_COLOURS["decode"])
        axis.axvline(found["p99"], color=_COLOURS["decode"], linestyle="--")
        axis.set_ylim(0, 102)
        axis.set_xlabel("ms")
        axis.set_ylabel("% at most this")
    return figure


def _subject(figures: Mapping[str, Any]) -> str:
    return f"{figures['source']}, {figures['engine']} + {figures['attention']}, {figures['device']}"


def _panels(count: int, title: str) -> tuple[Figure, Sequence[Axes]]:
    from matplotlib.figure import Figure

    rows = -(-count // 2)
    figure = Figure(figsize=(10, 1.0 + 3.4 * rows), layout="constrained")
    figure.suptitle(title)
    axes = list(figure.subplots(rows, 2).flat)
    for axis in axes:
        axis.grid(visible=True, color="#e0e0e0", linewidth=0.8)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _batch_axis(axis: Axes, figures: Mapping[str, Any]) -> None:
    batches = sorted({row["batch"] for row in figures["rows"]})
    axis.set_xscale("log", base=2)
    axis.set_xticks(batches, [str(batch) for batch in batches])
    axis.set_xlabel("batch")


def _percent_axis(axis: Axes) -> None:
    """From 0 to at least 100, with a line at the limit."""
    axis.axhline(100, color="#000000", linewidth=0.8, linestyle=":")
    top = max(105.0, axis.get_ylim()[1])
    axis.set_ylim(0, top)
    axis.set_title("% of the machine's limit")
