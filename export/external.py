"""Data that an ONNX graph keeps in other files: ONNX Runtime would read it from wherever it points."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx


def external_tensors(message: Any) -> Iterator[onnx.TensorProto]:
    """Every tensor with external data in a protobuf message: weights, attributes, subgraphs, functions."""
    if isinstance(message, onnx.TensorProto):
        if message.external_data or message.data_location == onnx.TensorProto.EXTERNAL:
            yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in (value,) if hasattr(value, "ListFields") else value:
                yield from external_tensors(part)
