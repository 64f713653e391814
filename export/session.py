"""A graph in ONNX Runtime on the CPU, for the checks of an export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

from cleave.export.pieces import make_initializers
from cleave.threads import session_options

Arrays = dict[str, npt.NDArray[Any]]


class GraphSession:
    """A session with weights as initializers, as an engine has them: given as inputs, some operators would
    multiply them in another way.
    """

    def __init__(self, model: onnx.ModelProto, weights: Mapping[str, npt.NDArray[Any]] | None = None) -> None:
        """`weights` by the names of those inputs of `model` that they take the place of."""
        # What the session does not pack it reads where it lies, so the arrays have to outlive it.
        self._weights = {name: np.ascontiguousarray(array) for name, array in (weights or {}).items()}
        make_initializers(model, self._weights)
        options = session_options()
        if self._weights:
            values = [ort.OrtValue.ortvalue_from_numpy(array) for array in self._weights.values()]
            options.add_external_initializers(list(self._weights), values)
        self._session = ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def run(self, inputs: Mapping[str, npt.NDArray[Any]], outputs: Sequence[str]) -> Arrays:
        """The outputs by their names."""
        return dict(zip(outputs, self._session.run(list(outputs), dict(inputs)), strict=True))
