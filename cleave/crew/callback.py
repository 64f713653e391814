"""An operator of ONNX Runtime that calls a compiled function with the session's thread pool.

Through its C API, of which Python's package shows nothing: an operator is a C structure that a library
registers under the name RegisterCustomOps. The numbers below are places in ONNX Runtime's function table, to
which it only ever appends, as of API version 17 (ONNX Runtime 1.17).
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from ctypes import CFUNCTYPE, POINTER, c_char_p, c_int, c_size_t, c_uint32, c_void_p, cast
from typing import Any

import onnxruntime as ort

from cleave.crew.trampoline import Trampoline
from cleave.errors import EngineError

_API = 17
_CREATE_DOMAIN, _ADD_TO_DOMAIN, _ADD_DOMAIN, _RELEASE_DOMAIN, _PARALLEL_FOR = 26, 27, 28, 101, 274
_FLOAT, _INT64 = 1, 7
_ENTRY = "RegisterCustomOps"

DOMAIN, OPERATOR = "cleave.callback", "Callback"
"""The operator: float32 tensors in, which are not read, and an int64 one out, which is not written. It runs
after whatever computes its inputs."""


class _Operator(ctypes.Structure):
    """OrtCustomOp, as of API version 17."""

    _fields_ = (
        ("version", c_uint32),
        *(
            (name, c_void_p)
            for name in (
                *("create_kernel", "name", "provider", "input_type", "input_count", "output_type"),
                *("output_count", "compute", "destroy", "input_characteristic", "output_characteristic"),
                *("input_memory", "least_inputs", "same_inputs", "least_outputs", "same_outputs"),
                *("create_kernel_2", "compute_2", "infer_shape", "start_version", "end_version"),
            )
        ),
    )


class Callback:
    """The operator, to be registered with the options of sessions.

    `compute` is the address of a C function `OrtStatus *(int64 argument, OrtKernelContext *)`, called in each
    run with `argument`; `destroy` that of a function `void (int64 argument)`, called with the session's end.
    Keep this object for as long as a session has the operator. `inputs` is how many it has.
    """

    parallel_for: int
    """The address of KernelContext_ParallelFor: `OrtStatus *(context, function, total, batches, data)`, which
    calls `void function(data, size_t index)` for every index below `total`, in the session's pool."""

    def __init__(self, compute: int, destroy: int, argument: int, *, inputs: int = 1) -> None:
        """Nothing is registered yet."""
        self._argument = argument
        self._kept: list[Any] = []
        self._operator = self._make(compute, destroy, inputs)
        # A session reads it when it ends, which may be after this object where both are forgotten at once:
        # these bytes are never given back.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._operator))
        self._domain = c_void_p()
        self._table: Any = None
        self._failure: str | None = None
        self._registering = threading.Lock()
        self._entry = CFUNCTYPE(c_void_p, c_void_p, c_void_p)(self._register)

    def register(self, options: ort.SessionOptions) -> None:
        """Let a session with these options have the operator.

        Raises EngineError where ONNX Runtime does not take it, OSError where no library can be made.
        """
        with self._registering:
            self._failure = "RegisterCustomOps was not called"
            trampoline = Trampoline(_ENTRY, cast(self._entry, c_void_p).value or 0)
            try:
                options.register_custom_ops_library(trampoline.path)
            except Exception as error:  # its errors have no public base
                self._failure = str(error)
            finally:
                trampoline.close()
            if self._failure is not None:
                raise EngineError(f"ONNX Runtime {ort.__version__} did not take an operator: {self._failure}")

    def close(self) -> None:
        """Release the operator, after the sessions that have it."""
        if self._domain:
            CFUNCTYPE(None, c_void_p)(self._table[_RELEASE_DOMAIN])(self._domain)
            self._domain = c_void_p()

    def _make(self, compute: int, destroy: int, inputs: int) -> _Operator:
        name = ctypes.create_string_buffer(OPERATOR.encode())
        self._kept.append(name)
        operator = _Operator(version=_API, compute_2=compute, destroy=destroy)
        operator.name = self._function(lambda _: ctypes.addressof(name), c_void_p, c_void_p)
        operator.provider = self._function(lambda _: None, c_void_p, c_void_p)
        operator.input_type = self._function(lambda _, index: _FLOAT, c_int, c_void_p, c_size_t)
        operator.output_type = self._function(lambda _, index: _INT64, c_int, c_void_p, c_size_t)
        operator.input_count = self._function(lambda _: inputs, c_size_t, c_void_p)
        operator.output_count = self._function(lambda _: 1, c_size_t, c_void_p)
        for field in ("input_characteristic", "output_characteristic", "input_memory"):
            setattr(operator, field, self._function(lambda _, index: 0, c_int, c_void_p, c_size_t))
        for field in ("least_inputs", "same_inputs", "least_outputs", "same_outputs", "start_version"):
            setattr(operator, field, self._function(lambda _: 1, c_int, c_void_p))
        operator.end_version = self._function(lambda _: 1, c_int, c_void_p)
        operator.create_kernel_2 = self._function(self._create, c_void_p, *[c_void_p] * 4)
        return operator

    def _function(self, function: Callable[..., Any], result: Any, *arguments: Any) -> int:
        """The address of a Python function for C, which is kept."""
        callback = CFUNCTYPE(result, *arguments)(function)
        self._kept.append(callback)
        return cast(callback, c_void_p).value or 0

    def _create(self, operator: int, api: int, info: int, kernel: int) -> None:
        """CreateKernelV2: what the functions get is the argument."""
        cast(kernel, POINTER(c_void_p))[0] = self._argument

    def _register(self, options: int, base: int) -> None:
        """RegisterCustomOps. Gives back no status: an exception must not leave a function that C calls."""
        try:
            get_api = CFUNCTYPE(c_void_p, c_uint32)(cast(base, POINTER(c_void_p))[0])
            api = get_api(_API)
            if not api:
                raise EngineError(f"it has no API version {_API}")
            self._table = cast(api, POINTER(c_void_p))
            create = CFUNCTYPE(c_void_p, c_char_p, c_void_p)(self._table[_CREATE_DOMAIN])
            add = CFUNCTYPE(c_void_p, c_void_p, c_void_p)
            statuses = []
            if not self._domain:
                statuses += [
                    create(DOMAIN.encode(), ctypes.byref(self._domain)),
                    add(self._table[_ADD_TO_DOMAIN])(self._domain, ctypes.byref(self._operator)),
                ]
            statuses.append(add(self._table[_ADD_DOMAIN])(options, self._domain))
            if any(statuses):
                raise EngineError("it refuses the operator or its domain")
            self.parallel_for = self._table[_PARALLEL_FOR]
            self._failure = None
        except Exception as error:
            self._failure = str(error)
