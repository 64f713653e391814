"""TensorRT, imported when first needed."""

from __future__ import annotations

import importlib
from typing import Any

from cleave.errors import EngineError, MissingPackage

EXTRA = "tensorrt"
_OLDEST, _NEWEST = (10, 9), 11


def load() -> Any:
    """The module `tensorrt`.

    Raises MissingPackage where it is not installed, EngineError for a version that is not supported.
    """
    try:
        trt = importlib.import_module("tensorrt")
    except ImportError as error:
        raise MissingPackage(error.name or "tensorrt", EXTRA, "the engine tensorrt") from None
    major, minor = (int(part) for part in str(trt.__version__).split(".")[:2])
    if (major, minor) < _OLDEST or major > _NEWEST:
        raise EngineError(
            f"TensorRT {trt.__version__} is installed; the engine tensorrt needs {_OLDEST[0]}.{_OLDEST[1]} "
            f"or newer, up to {_NEWEST}: install one, or use the engine kind inductor"
        )
    return trt
