"""The table of a comparison, its verdict in a sentence, and both as JSON."""

from __future__ import annotations

from typing import Any

from rich.table import Table
from rich.text import Text

from cleave.runtime.compare.difference import END_TO_END, Comparison, Difference
from cleave.runtime.compare.trace import AT_A_CUT, Place


def table(comparison: Comparison) -> Table:
    """New errors layer by layer, and the error of the residual and of the logits end to end."""
    view = Table(
        title=f"{comparison.name} against {comparison.reference}: relative error, worst of "
        f"{comparison.tokens} tokens",
        caption=f"new errors: every piece and every attention is fed the reference's values; tolerance "
        f"{comparison.tolerance:.0e} ({comparison.dtype})",
    )
    view.add_column("")
    for tensor in AT_A_CUT:
        view.add_column(tensor, justify="right")
    view.add_column("end to end", justify="right", style="dim")
    by_place = {item.place: item for item in comparison.differences}
    blamed = set(comparison.diverging)
    layers = comparison.differences[-1].place.layer
    for layer in range(-1, layers):
        cells = [_cell(by_place.get(Place(layer, tensor)), comparison, blamed) for tensor in AT_A_CUT]
        label = "embedding" if layer < 0 else f"layer {layer}"
        view.add_row(label, *cells, _number(by_place[Place(layer, "residual")].end_to_end))
    logits = comparison.differences[-1]
    view.add_row("logits", "", "", "", "", _cell(logits, comparison, blamed), _number(logits.end_to_end))
    return view


def verdict(comparison: Comparison, weights: tuple[str, ...] = ()) -> str:
    """One sentence or two; `weights` are those that the first divergence depends on."""
    against = f"{comparison.name} against {comparison.reference}"
    first = comparison.first
    if first is not None:
        found = next(item for item in comparison.differences if item.place == first)
        others = len(comparison.diverging) - 1
        more = f", and {others} more after it" if others else ""
        return (
            f"{against}: first divergence at {first}, error {_number(found.new)} where "
            f"{comparison.tolerance:.0e} is allowed{more}. " + _origin(first, weights)
        )
    last = comparison.differences[-1]
    if comparison.logits_beyond:
        return (
            f"{against}: every part is within the tolerance by itself, and yet the logits are off by "
            f"{_number(last.end_to_end)} end to end, more than {END_TO_END} tolerances of "
            f"{comparison.tolerance:.0e}"
        )
    worst = max(comparison.differences, key=lambda item: item.new)
    return (
        f"{against}: agrees; largest new error {_number(worst.new)} at {worst.place}, logits "
        f"{_number(last.end_to_end)} end to end, the same likeliest token in {comparison.same_tokens} of "
        f"{comparison.tokens} rows"
    )


def as_json(comparison: Comparison, weights: tuple[str, ...] = ()) -> dict[str, Any]:
    """All of a comparison; errors that are not finite are null."""
    return {
        "engine": comparison.name,
        "reference": comparison.reference,
        "dtype": comparison.dtype,
        "tolerance": comparison.tolerance,
        "agrees": comparison.agrees,
        "first_divergence": None if comparison.first is None else str(comparison.first),
        "weights": list(weights),
        "diverging": [str(place) for place in comparison.diverging],
        "tokens": comparison.tokens,
        "same_tokens": comparison.same_tokens,
        "errors": [
            {
                "place": str(item.place),
                "new": _finite(item.new),
                "end_to_end": _finite(item.end_to_end),
            }
            for item in comparison.differences
        ],
    }


def _origin(place: Place, weights: tuple[str, ...]) -> str:
    if place.tensor == "attention":
        return "It has no weights: look at the attention backend and at the attention spec"
    if not weights:
        return "Look at what computes it"
    return f"It comes out of {', '.join(weights)}"


def _cell(item: Difference | None, comparison: Comparison, blamed: set[Place]) -> Text:
    if item is None:
        return Text("")
    if item.place in blamed:
        return Text(_number(item.new), style="bold red")
    return Text(_number(item.new), style="" if item.new <= comparison.tolerance else "yellow")


def _number(error: float) -> str:
    return "not finite" if error == float("inf") else f"{error:.1e}"


def _finite(error: float) -> float | None:
    return None if error == float("inf") else error
