"""A crew whose threads are those of ONNX Runtime's one pool of the process."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnx import TensorProto, helper

from cleave.crew import code, trampoline
from cleave.crew.callback import DOMAIN, OPERATOR, Callback
from cleave.errors import EngineError
from cleave.threads import session_options


def can_borrow() -> bool:
    """Whether ONNX Runtime can be made to call a compiled function here."""
    return trampoline.is_supported()


class BorrowedCrew:
    """A `Crew` that borrows the threads which compute the pieces.

    They still spin when a piece has ended, so a job begins at once, on threads that hold the processor. With
    threads of its own a crew would have to take it from them, and would be asleep after every piece.
    """

    means = "those of ONNX Runtime's pool"

    def __init__(self, threads: int) -> None:
        """Raises EngineError where ONNX Runtime does not take part, OSError where no library can be made."""
        self.threads = threads
        self._words = code.new_words(threads)
        self._operator = _Operator(threads, self._words)
        # In this order also where the crew is forgotten and not closed: the session calls into the callback.
        self._end = weakref.finalize(self, self._operator.close)

    def run(self, function: int, block: int, parts: int) -> None:
        """See `Crew.run`."""
        helpers = min(parts, self.threads) - 1
        code.publish(self._words, function, block, parts, helpers)
        if helpers:
            self._operator.session.run_with_iobinding(self._operator.binding)
        else:
            code.work(self._words, 0)

    def close(self) -> None:
        """See `Crew.close`."""
        self._end()


class _Operator:
    """A session of one operator, which runs the job in `words` on the threads of ONNX Runtime's pool."""

    def __init__(self, threads: int, words: npt.NDArray[np.int64]) -> None:
        """Raises EngineError and OSError as `BorrowedCrew`."""
        options = session_options(threads)
        self._words = words
        self._callback = Callback(code.borrow.address, code.forget.address, words.ctypes.data)
        self.session: Any = None
        self.binding: Any = None
        try:
            self._callback.register(options)
            words[code.PARALLEL_FOR] = self._callback.parallel_for
            words[code.HELP] = code.help_out.address
            self.session = ort.InferenceSession(_graph(), options, providers=["CPUExecutionProvider"])
            self.binding = self.session.io_binding()
            given, made = (
                ort.OrtValue.ortvalue_from_numpy(np.zeros(1, kind)) for kind in (np.float32, np.int64)
            )
            self.binding.bind_ortvalue_input("given", given)
            self.binding.bind_ortvalue_output("made", made)
        except (EngineError, OSError):
            self.close()
            raise
        except Exception as error:  # its errors have no public base
            self.close()
            raise EngineError(f"ONNX Runtime {ort.__version__} cannot run an operator: {error}") from None

    def close(self) -> None:
        """End the session, and the callback after it."""
        self.binding = self.session = None
        self._callback.close()


def _graph() -> bytes:
    """A graph of the one operator."""
    node = helper.make_node(OPERATOR, ["given"], ["made"], domain=DOMAIN)
    given = helper.make_tensor_value_info("given", TensorProto.FLOAT, [1])
    made = helper.make_tensor_value_info("made", TensorProto.INT64, [1])
    graph = helper.make_graph([node], "crew", [given], [made])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, 1)]
    serialized: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()
    return serialized
