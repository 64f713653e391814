"""Attention inside the pieces: a node after q, k and v that runs the attention server's compiled jobs.

So a step does not return to Python between a piece and its attention, and the threads that computed the
piece go on at once. A node that finds no jobs does nothing; the engine then calls the attention server.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from cleave.crew.borrowed import can_borrow
from cleave.crew.callback import DOMAIN, OPERATOR
from cleave.crew.series import Series
from cleave.errors import EngineError
from cleave.runtime.engines.engine import Attention
from cleave.threads import has_one_thread_pool, session_options

_INPUTS = ("q", "k", "v")
_OUTPUT = "attended"
_log = logging.getLogger("cleave")


class PieceAttention:
    """The nodes of all pieces of one engine."""

    def __init__(self, threads: int) -> None:
        """`threads` are those of the engine."""
        self._series = Series(threads, inputs=len(_INPUTS))
        # Every node has an output, since graphs are made of what is computed; nothing writes it.
        self._nothing = ort.OrtValue.ortvalue_from_numpy(np.zeros(1, np.int64))

    def add(self, model: onnx.ModelProto, options: ort.SessionOptions) -> None:
        """Add the node to a piece that computes q, k and v, which is to be loaded with these options."""
        node = helper.make_node(OPERATOR, _INPUTS, [_OUTPUT], domain=DOMAIN)
        model.graph.node.append(node)
        model.graph.output.append(helper.make_tensor_value_info(_OUTPUT, TensorProto.INT64, [1]))
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
        self.register(options)

    def register(self, options: ort.SessionOptions) -> None:
        """Raises EngineError where ONNX Runtime does not take the operator, OSError where it has no place."""
        self._series.register(options)

    def bind(self, binding: ort.IOBinding) -> None:
        """Bind what `add` added."""
        binding.bind_ortvalue_output(_OUTPUT, self._nothing)

    def begin(self, attention: Attention, layers: int, q: Any, k: Any, v: Any, out: Any) -> bool:
        """Whether the pieces of this step run attention themselves, with these arrays in every layer.

        Until `end`. Not where it has jobs for another number of layers: outside it says which one there is
        not. Raises what the attention server raises for arrays that do not fit.
        """
        make = getattr(attention, "jobs", None)
        jobs = None if make is None else make(q, k, v, out)
        if jobs is None or len(jobs.entries) != layers:
            return False
        self._series.begin(jobs.entries, jobs.threads)
        return True

    def end(self) -> None:
        """Let nodes do nothing again, also those that did not run since the step failed."""
        self._series.end()

    def close(self) -> None:
        """To be called after the sessions have ended."""
        self._series.close()


def piece_attention(threads: int) -> PieceAttention | None:
    """The nodes of an engine, where its sessions share the pool of the process and can be given operators."""
    if threads == 1 or not (has_one_thread_pool() and can_borrow()):
        return None
    nodes = PieceAttention(threads)
    try:
        nodes.register(session_options(threads))
    except (EngineError, OSError) as error:
        _log.info("attention stays outside the pieces: %s", error)
        return None
    return nodes


def has_cut(outputs: Collection[str]) -> bool:
    """Whether a piece with these outputs computes q, k and v."""
    return set(_INPUTS) <= set(outputs)
