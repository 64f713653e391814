"""Stands between an engine and its attention server, and sees what crosses every cut."""

from __future__ import annotations

from typing import Any

from cleave.runtime.compare.trace import Place, Trace, overwrite
from cleave.runtime.engines.engine import Attention


class Recorder:
    """Records q, k, v, attention output and residual of every layer; see `Attention` and `Observer`.

    With a `reference`, whatever was recorded is then replaced by the reference's values, so that each
    piece and each attention starts from the right inputs: what differs, differs by its own fault.
    """

    def __init__(self, attention: Attention, trace: Trace, reference: Trace | None = None) -> None:
        self._attention = attention
        self._trace = trace
        self._reference = reference
        self.start = 0
        """Position of the first token of the step."""

    def run(self, layer: int, q: Any, k: Any, v: Any, out: Any) -> None:
        """See `Attention.run`."""
        for name, array in (("q", q), ("k", k), ("v", v)):
            self._see(Place(layer, name), array)
        self._attention.run(layer, q, k, v, out)
        self._see(Place(layer, "attention"), out)

    def residual(self, layer: int, residual: Any) -> None:
        """See `Observer.residual`."""
        self._see(Place(layer, "residual"), residual)

    def logits(self, logits: Any) -> None:
        """Record the logits of the step's rows."""
        self._trace.put(Place(self._trace.layers, "logits"), self.start, logits)

    def _see(self, place: Place, array: Any) -> None:
        self._trace.put(place, self.start, array)
        if self._reference is not None:
            overwrite(array, self._reference[place][self.start : self.start + len(array)])
