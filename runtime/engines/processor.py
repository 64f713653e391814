"""What this machine's processor is, as far as compiled and packed code depends on it."""

from __future__ import annotations

import platform
from pathlib import Path

_VECTORS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "asimd", "asimddp", "i8mm", "sve")


def processor() -> str:
    """The model and the vector instructions, as Linux names them."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    vectors = [name for name in _VECTORS if name in flags]
    return f"{fields.get('model name', platform.machine())} ({', '.join(vectors)})"
