"""Plots are drawn: every benchmark, as PNG and as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from cleave.errors import BenchError, MissingPackage
from cleave.runtime.bench.counts import Work
from cleave.runtime.bench.limits import Limits
from cleave.runtime.bench.phase import Phase, Run
from cleave.runtime.bench.plot import check_plot, draw, save_plot
from cleave.runtime.bench.published import BATCHES, published
from cleave.runtime.bench.serving import Timing, serving_figures

LIMITS = Limits(1e10, {"float32": 1e11, "int8": 2e11})
MODEL = {
    "source": "demo",
    "engine": "onnxruntime",
    "attention": "cpu",
    "products_in": "float32",
    "device": "2 threads",
}


def rows() -> list[dict[str, Any]]:
    return [
        Phase(
            name,
            batch,
            64 * batch,
            Work(10**8, 0, 0, 10**9 * batch),
            "float32",
            [Run((0.02 * batch,), LIMITS)] * 3,
        ).row()
        for name in ("prefill", "decode")
        for batch in BATCHES
    ]


FIGURES: dict[str, dict[str, Any]] = {
    "latency": MODEL | {"prompt": 512, "output": 64, "rows": rows()},
    "kvrun": MODEL | {"prompt": 10, "output": 8, "rows": rows(), "published": published()},
    "throughput": MODEL
    | {
        "requests": 9,
        "seconds": 3.0,
        "bytes_per_s": 4e9,
        "operations_per_s": 5e10,
        "limits": {"bytes_per_s": 1e10, "operations_per_s": LIMITS.operations},
        "percent_of_limit": 50.0,
        "tokens_per_s": 900.0,
        "output_tokens_per_s": 300.0,
    },
    "serve": {
        "model": "tiny",
        "rate": "2",
        **serving_figures([Timing(i, (i + 0.1, i + 0.2 + i / 100), 3, 2) for i in range(30)], 40.0),
    },
}
FIGURES = {name: figures | {"benchmark": name} for name, figures in FIGURES.items()}


@pytest.mark.parametrize("name", FIGURES)
def test_every_benchmark_is_drawn(name: str, tmp_path: Path) -> None:
    save_plot(FIGURES[name], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    save_plot(FIGURES[name], tmp_path / "plot.html")
    page = (tmp_path / "plot.html").read_text()
    svg = ElementTree.fromstring(page[page.index("<svg") : page.index("</svg>") + 6])
    assert svg.tag.endswith("svg")


def test_latency_shows_throughput_and_the_share_of_the_limit_over_the_batch() -> None:
    speed, share = draw(FIGURES["latency"]).axes
    assert [line.get_label() for line in speed.lines] == ["prefill", "decode"]
    for axis, key in ((speed, "tokens_per_s"), (share, "percent_of_limit")):
        for line, phase in zip(axis.lines, ("prefill", "decode"), strict=False):
            expected = [row[key] for row in FIGURES["latency"]["rows"] if row["phase"] == phase]
            assert list(line.get_xdata()) == list(BATCHES)
            assert list(line.get_ydata()) == expected
    assert share.get_ylim()[0] == 0
    assert share.get_ylim()[1] > 100


def test_serving_shows_the_distribution_of_each_latency() -> None:
    axes = draw(FIGURES["serve"]).axes
    assert [axis.get_title().split(":")[0] for axis in axes] == ["TTFT", "TPOT", "ITL", "E2E"]
    for axis in axes:
        heights = list(axis.lines[0].get_ydata())
        assert heights == sorted(heights)
        assert heights[-1] == 100


def test_a_plot_that_cannot_be_written_is_said_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BenchError, match="its name must end in"):
        check_plot(tmp_path / "plot.gif")
    with pytest.raises(BenchError, match="there is no folder"):
        check_plot(tmp_path / "nowhere" / "plot.png")
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(MissingPackage, match="--plot needs matplotlib: pip install"):
        check_plot(tmp_path / "plot.png")
