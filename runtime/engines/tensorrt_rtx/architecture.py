"""The GPU architectures that TensorRT for RTX builds for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from cleave.errors import EngineError

_NAME = re.compile(r"SM(\d+)(\d)")
_GIVEN = re.compile(r"(?:sm_?)?(\d+)[.](\d)", re.IGNORECASE)
_DATA_CENTER = ("9.0", "10.0", "10.1", "10.3", "11.0")
"""What NVIDIA sells for data centers and robots, and TensorRT for RTX leaves to TensorRT."""
_ADVICE = "use the engine kind `inductor` there"


def supported(trt: Any) -> dict[str, Any]:
    """Compute capability, such as "8.6", -> the member of `trt.ComputeCapability`; oldest first."""
    found = ((_NAME.fullmatch(name), member) for name, member in trt.ComputeCapability.__members__.items())
    known = {f"{match[1]}.{match[2]}": member for match, member in found if match}
    return dict(sorted(known.items(), key=lambda item: _order(item[0])))


def parse(text: str | Sequence[str], trt: Any) -> tuple[str, ...]:
    """The compute capabilities in "8.6,8.9,12.0" or in a list, oldest first and each once.

    Raises EngineError for one that is not written so, or that TensorRT for RTX does not build for.
    """
    given = [part.strip() for part in (text.split(",") if isinstance(text, str) else text)]
    allowed = supported(trt)
    chosen = set()
    for part in given:
        match = _GIVEN.fullmatch(part)
        if match is None:
            raise EngineError(
                f"{part!r} is no compute capability; give numbers such as 8.6,8.9,12.0 "
                f"(TensorRT for RTX {trt.__version__} has {', '.join(allowed)})"
            )
        check(f"{match[1]}.{match[2]}", trt)
        chosen.add(f"{match[1]}.{match[2]}")
    return tuple(sorted(chosen, key=_order))


def check(capability: str, trt: Any) -> None:
    """Raises EngineError where TensorRT for RTX has no engines for a compute capability."""
    allowed = supported(trt)
    if capability in allowed:
        return
    advice = (
        f"; {_ADVICE}"
        if capability in _DATA_CENTER or _order(capability) < _order(next(iter(allowed)))
        else ""
    )
    raise EngineError(
        f"TensorRT for RTX {trt.__version__} does not build for compute capability {capability}{advice}; "
        f"it has {', '.join(allowed)}"
    )


def check_dtype(capabilities: Sequence[str], dtype: str) -> None:
    """Raises EngineError where the matrix products of a dtype cannot be built for an architecture.

    Seen with 1.7.1: for 7.5 the builder refuses float32 and bfloat16 matrix products.
    """
    if "7.5" in capabilities and dtype != "float16":
        raise EngineError(
            "TensorRT for RTX multiplies only float16 on compute capability 7.5, and the artifact is "
            f"{dtype}; export it with --dtype float16, or leave 7.5 out"
        )


def _order(capability: str) -> tuple[int, int]:
    major, _, minor = capability.partition(".")
    return int(major), int(minor)
