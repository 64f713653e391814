"""Run every Triton kernel under NVIDIA's compute-sanitizer, at small shapes; fail where it finds an error.

memcheck, racecheck and initcheck each run the tests of `TESTS` in a process of their own, side by side. A
kernel of the sources that none of them launches is an error too. Needs an NVIDIA GPU, and compute-sanitizer
of the CUDA toolkit.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ("memcheck", "racecheck", "initcheck")
TESTS = {
    "tests/kvcache/test_triton.py": "half_precision or long_history or past_the_step or give_the_same_sums",
    "tests/runtime/inductor/test_small.py": "ragged and dtype0 or norm_of_few_rows and dtype0",
    "tests/runtime/sampling/test_device.py": "of_the_cpu and 700",
}
"""Files, and which of their tests: the fewest that launch every kernel, rows and widths that are not whole
blocks among them."""
SOURCES = ("kvcache/backends", "runtime/engines/inductor", "runtime/sampling/device")
FOUND = 86
"""What compute-sanitizer ends with where it found an error; every other code is that of the tests."""
NOT_LAUNCHED = 87


def kernels() -> set[str]:
    """The names of all kernels in the sources."""
    names: set[str] = set()
    for room in SOURCES:
        for file in (ROOT / room).glob("*.py"):
            names |= set(re.findall(r"^@triton\.jit.*\ndef (\w+_kernel)\(", file.read_text("utf-8"), re.M))
    return names


def inside() -> int:
    """The tests, in the process that is looked at; an exit code."""
    import pytest
    from triton import knobs

    launched: set[str] = set()

    def listen(*, src: Any, **told: Any) -> None:
        launched.add(getattr(getattr(src, "fn", None), "__name__", ""))

    knobs.compilation.listener = listen
    words = " or ".join(f"({one})" for one in TESTS.values())
    code = pytest.main(["-v", "-x", "--tb=short", "-p", "no:cacheprovider", *TESTS, "-k", words])
    if code:
        return int(code)
    if missing := kernels() - launched:
        print(f"error: no test of scripts/sanitize.py launches {', '.join(sorted(missing))}")
        return NOT_LAUNCHED
    print(f"{len(launched & kernels())} kernels were launched")
    return 0


def command(sanitizer: str, tool: str) -> list[str]:
    """What runs the tests under one of the tools."""
    said = subprocess.run([sanitizer, "--help"], capture_output=True, text=True, check=False).stdout
    # Of other kernels, such as the library's products, what is found would be nobody's to mend here.
    option = "--kernel-name" if "--kernel-name" in said else "--kernel-regex"
    return [
        *(sanitizer, "--tool", tool, "--error-exitcode", str(FOUND), option, "kns=_kernel"),
        *(sys.executable, __file__, "--inside"),
    ]


def verdict(tool: str, code: int | None, log: Path, seconds: float) -> bool:
    """Print what came of a tool; whether all is well."""
    lines = log.read_text("utf-8", errors="replace").splitlines()
    summary = next((line for line in reversed(lines) if "SUMMARY" in line), "no summary")
    told = {0: "clean", FOUND: "ERRORS", None: "NOT AT ITS END"}.get(code, f"FAILED, exit code {code}")
    print(f"{tool}: {told} after {seconds:.0f} s; {summary}", flush=True)
    if code != 0:
        print("\n".join([*lines[:40], "...", *lines[-60:]] if len(lines) > 100 else lines))
    return code == 0


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tool", choices=TOOLS, action="append", help="Only this one, repeatable.")
    parser.add_argument(
        "--seconds", type=float, default=600, help="After so many they are ended. Default: 600."
    )
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.inside:
        sys.exit(inside())
    sanitizer = shutil.which("compute-sanitizer", path=f"{os.environ['PATH']}:/usr/local/cuda/bin")
    if sanitizer is None:
        sys.exit(
            "error: there is no compute-sanitizer; it is part of the CUDA toolkit: put its bin on the PATH"
        )
    # Every tensor gets memory of its own, so that its end is the end of what may be read.
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "PYTHONUNBUFFERED": "1"}
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="cleave-sanitize-") as folder:
        logs = {tool: Path(folder, tool) for tool in asked.tool or TOOLS}
        running = {}
        for tool, log in logs.items():
            with log.open("wb") as file:
                running[tool] = subprocess.Popen(
                    command(sanitizer, tool), cwd=ROOT, env=environment, stdout=file, stderr=file
                )
        are_well = []
        while running:
            is_late = time.monotonic() > began + asked.seconds
            for tool, process in list(running.items()):
                if process.poll() is None and not is_late:
                    continue
                code = process.poll()
                process.kill()
                process.wait()
                del running[tool]
                are_well.append(verdict(tool, code, logs[tool], time.monotonic() - began))
            time.sleep(0.2)
    sys.exit(0 if all(are_well) else 1)


if __name__ == "__main__":
    main()
