"""What this machine's processor is, as far as compiled and packed code depends on it."""

from __future__ import annotations

import platform
from pathlib import Path

_VECTORS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "asimd", "asimddp", "i8mm", "sve")


_FLOAT32 = {"avx512f": "AVX-512", "avx2": "AVX2", "asimd": "NEON"}
_INT4 = {"avx512_vnni": "VNNI", "avx_vnni": "VNNI", "avx2": "AVX2", "asimddp": "dot products"}
_INT8 = {"amx_int8": "AMX", "i8mm": "I8MM"} | _INT4
"""The instructions that ONNX Runtime multiplies with, the best first. On x86 it has none for bfloat16."""


def processor() -> str:
    """The model and the vector instructions, as Linux names them."""
    fields = _cpuinfo()
    if not fields:
        return platform.processor() or platform.machine()
    flags = _flags(fields)
    vectors = [name for name in _VECTORS if name in flags]
    return f"{fields.get('model name', platform.machine())} ({', '.join(vectors)})"


def arithmetic() -> str:
    """What the engine onnxruntime multiplies with here: "float32 in AVX-512, int8 in AMX, int4 in VNNI".

    Empty where the system does not tell.
    """
    flags = _flags(_cpuinfo())
    kinds = {"float32": _FLOAT32, "int8": _INT8, "int4": _INT4}
    best = {
        kind: next((names[flag] for flag in names if flag in flags), None) for kind, names in kinds.items()
    }
    return ", ".join(f"{kind} in {name}" for kind, name in best.items() if name)


def _cpuinfo() -> dict[str, str]:
    """Name -> value, of the last processor that Linux lists; empty on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return {}
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _flags(fields: dict[str, str]) -> list[str]:
    return (fields.get("flags") or fields.get("Features") or "").split()
