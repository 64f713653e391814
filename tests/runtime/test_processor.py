"""What the processor is said to multiply with, by the flags that Linux lists."""

from __future__ import annotations

from pathlib import Path

import pytest

from cleave.runtime.engines import processor

CASES = {
    "flags\t: avx2 avx512f avx512_vnni amx_int8": "float32 in AVX-512, int8 in AMX, int4 in VNNI",
    "flags\t: fpu avx2 avx_vnni": "float32 in AVX2, int8 in VNNI, int4 in VNNI",
    "flags\t: fpu sse2": "",
    "Features\t: asimd asimddp i8mm": "float32 in NEON, int8 in I8MM, int4 in dot products",
}


@pytest.mark.parametrize(("line", "expected"), CASES.items())
def test_the_best_instructions_are_named(
    line: str, expected: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nmodel name\t: a processor\n{line}\n", "utf-8")
    real = Path

    def path(name: str) -> Path:
        return cpuinfo if name == "/proc/cpuinfo" else real(name)

    monkeypatch.setattr(processor, "Path", path)
    assert processor.arithmetic() == expected
    assert processor.processor().startswith("a processor (")


def test_nothing_is_said_where_the_system_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "Path", lambda name: Path("/nowhere"))
    assert processor.arithmetic() == ""
    assert processor.processor()
