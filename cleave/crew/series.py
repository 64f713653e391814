"""Jobs that run inside sessions of ONNX Runtime, where their graphs say so, with the session's threads.

A crew is asked from Python for one job at a time. Where every job of a step is known before it begins,
the sessions can run them by themselves: each node `OPERATOR` runs one entry of a series, in turn.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from cleave.crew import code
from cleave.crew.callback import Callback


class Series:
    """Entries, each of one or more jobs as `Crew.run` takes them, for nodes that run one after the other.

    Where no entry is left, a node does nothing. Nodes of one series must not run at the same time.
    """

    def __init__(self, threads: int, *, inputs: int) -> None:
        """Of sessions that compute with `threads` threads; a node has `inputs` inputs."""
        self._threads = threads
        # Both in one block, whose address is all that a node knows.
        self._block = code.new_words(1 + threads)
        self._words = self._block[code.SERIES :]
        address = self._block.ctypes.data
        self._callback = Callback(code.run_entry.address, code.forget.address, address, inputs=inputs)
        self._entries: npt.NDArray[np.int64] | None = None

    def register(self, options: ort.SessionOptions) -> None:
        """Let a session with these options have the operator.

        Raises EngineError where ONNX Runtime does not take it, OSError where no library can be made.
        """
        self._callback.register(options)
        self._words[code.PARALLEL_FOR] = self._callback.parallel_for
        self._words[code.HELP] = code.help_out.address

    def begin(self, entries: npt.NDArray[np.int64], threads: int) -> None:
        """Let the next nodes run these entries [entries, jobs, 3]: function, block and parts of each job.

        A job of no parts is left out. At most `threads` threads take part.
        """
        self._entries = entries
        self._block[code.NEXT] = entries.__array_interface__["data"][0]
        self._block[code.ENTRY_JOBS] = entries.shape[1]
        self._block[code.THREADS] = min(threads, self._threads)
        self._block[code.ENTRIES] = len(entries)

    def end(self) -> None:
        """Forget the entries that have not run."""
        self._block[code.ENTRIES] = 0
        self._entries = None

    def close(self) -> None:
        """Release the operator, after the sessions that have it."""
        self._callback.close()
