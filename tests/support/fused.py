"""Triton's interpreter with the `fma` of a GPU, which rounds once; its own rounds the product too."""

from __future__ import annotations

from typing import Any

import numpy as np
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


def round_once() -> None:
    """From now on. A float64 has room for the whole product of two float32, and of smaller types."""

    def create_fma(builder: Any, x: Any, y: Any, z: Any) -> Any:
        del builder
        exact = x.data.astype(np.float64) * y.data + z.data
        return TensorHandle(exact.astype(z.data.dtype), z.dtype.scalar)

    InterpreterBuilder.create_fma = create_fma
