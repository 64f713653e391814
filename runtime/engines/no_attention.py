"""An attention server that does nothing."""

from __future__ import annotations

from typing import Any


class NoAttention:
    """Stands in for the attention server where only the memory of a step counts, or what it launches."""

    def run(self, layer: int, q: Any, k: Any, v: Any, out: Any) -> None:
        """See `cleave.runtime.engines.engine.Attention`; out is left as it is."""
