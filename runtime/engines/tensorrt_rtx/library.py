"""TensorRT for RTX, imported when first needed."""

from __future__ import annotations

import importlib
import logging
from typing import Any

from cleave.errors import MissingPackage

EXTRA = "rtx"
_log = logging.getLogger("cleave.tensorrt_rtx")


def load() -> Any:
    """The module `tensorrt_rtx_bindings`. Raises MissingPackage where it is not installed."""
    try:
        # The shared libraries come in a wheel of their own, which puts them into the process.
        importlib.import_module("tensorrt_rtx_libs")
        return importlib.import_module("tensorrt_rtx_bindings")
    except ImportError as error:
        raise MissingPackage(
            error.name or "tensorrt_rtx_bindings", EXTRA, "the engine tensorrt_rtx"
        ) from None


def make_logger(trt: Any) -> Any:
    """A logger that passes the library's messages on to Python's logging, and keeps its errors.

    Its list `errors` has the text of every error in order: the library's calls say only that they failed.
    """
    levels = {
        trt.ILogger.Severity.INTERNAL_ERROR: logging.DEBUG,
        trt.ILogger.Severity.ERROR: logging.DEBUG,
        trt.ILogger.Severity.WARNING: logging.INFO,
        trt.ILogger.Severity.INFO: logging.DEBUG,
        trt.ILogger.Severity.VERBOSE: logging.NOTSET,
    }

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                self.errors.append(message)
            level = levels.get(severity, logging.NOTSET)
            if level and _log.isEnabledFor(level):
                _log.log(level, "%s", message)

    return Logger()
