"""What stands in the place of attention where an engine is tested by itself."""

from __future__ import annotations

from typing import Any

import torch


class HandsQOn:
    """In the place of attention; every row by itself, so that padding changes nothing."""

    takes_padding = True

    def run(self, layer: int, q: Any, k: Any, v: Any, out: Any) -> None:
        torch.mul(q, 1, out=out)


class Decodes(HandsQOn):
    """Its steps are captured as a whole."""

    graph_key = "decode"
