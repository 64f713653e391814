"""Run every Triton kernel under NVIDIA's compute-sanitizer, at small shapes; fail where it finds an error.

memcheck, racecheck and initcheck each run the tests of `TESTS` in a process of their own, side by side. A
kernel of the sources that none of them launches is an error too. Needs an NVIDIA GPU, and compute-sanitizer
of the CUDA toolkit.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from refusal import refuse, require_gpu

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ("memcheck", "racecheck", "initcheck")
TESTS = {
    "tests/kvcache/test_triton.py": "half_precision and not bfloat16 or long_history or past_the_step",
    "tests/runtime/inductor/test_small.py": "few_rows and (ragged-1-dtype0 or ragged-23-dtype0) "
    "or held and 2-3 and ragged-dtype0 or ragged-3-23-dtype0 or tiles and swiglu-ragged-dtype0 "
    "or norm_of_few_rows and dtype0 or layers_of_a_band and (ragged-33-dtype0 or ragged-65-dtype0)",
    "tests/runtime/sampling/test_likeliest.py": "search_finds and 2049",
    "tests/runtime/sampling/test_device.py": "of_the_cpu and 700",
}
"""Files, and which of their tests: few that launch every kernel, with rows and widths that are not whole
blocks."""
SOURCES = ("kvcache/backends", "runtime/engines/inductor", "runtime/sampling/device")
FOUND = 86
"""What compute-sanitizer ends with where it found errors, whatever the tests ended with."""
SHOWN = 60
"""Lines of a log that are printed where not all is well."""
ALL_LAUNCHED = "all kernels were launched, and all tests passed"


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

    def listen(launch: Any) -> None:
        launched.add(launch.get()["name"])

    knobs.runtime.launch_enter_hook.add(listen)
    words = " or ".join(f"({one})" for one in TESTS.values())
    code = pytest.main(["-v", "-x", "--tb=short", "-p", "no:cacheprovider", *TESTS, "-k", words])
    if code:
        return int(code)
    if missing := kernels() - launched:
        print(f"error: no test of scripts/sanitize.py launches {', '.join(sorted(missing))}")
        return 1
    print(ALL_LAUNCHED)
    return 0


def command(sanitizer: str, tool: str) -> list[str]:
    """What runs the tests under one of the tools."""
    only = []
    if tool == "racecheck":  # it takes long over the library's products, and each kernel stands for itself
        said = subprocess.run([sanitizer, "--help"], capture_output=True, text=True, check=False).stdout
        option = next((one for one in ("--kernel-name", "--kernel-regex") if one in said), None)
        only = [] if option is None else [option, "kns=_kernel"]
    return [
        *(sanitizer, "--tool", tool, "--error-exitcode", str(FOUND), "--print-limit", "10000"),
        *("--show-backtrace", "no", "--report-api-errors", "no", *only),
        *(sys.executable, str(Path(__file__).resolve()), "--inside"),
    ]


def verdict(tool: str, code: int | None, log: Path, seconds: float) -> bool:
    """Print what came of a tool; whether all is well. What it found in kernels of others is only counted."""
    lines = log.read_text("utf-8", errors="replace").splitlines()
    said = [line for line in lines if line.startswith("========= ")]
    own = re.compile(rf"\b({'|'.join(sorted(kernels()))})\b")
    in_own = [line for line in said if own.search(line)]
    summary = " ".join(line.removeprefix("========= ") for line in said if "SUMMARY" in line) or "no summary"
    if code is None:
        told = "NOT AT ITS END"
    elif in_own:
        told = f"{len(in_own)} PLACES IN OWN KERNELS"
    elif code not in (0, FOUND) or ALL_LAUNCHED not in lines:
        told = f"FAILED with exit code {code}"
    else:
        told = "clean" if code == 0 else "clean but for kernels of others"
    is_well = told.startswith("clean")
    print(f"{tool}: {told}, after {seconds:.0f} s; {summary}", flush=True)
    if not is_well:
        print("\n".join([*dict.fromkeys(in_own[:SHOWN]), *lines[-SHOWN:]]))
    return is_well


def start(arguments: list[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    """A process with a group of its own, since compute-sanitizer starts another one."""
    with log.open("wb") as file:
        return subprocess.Popen(
            arguments, cwd=ROOT, env=environment, stdout=file, stderr=file, start_new_session=True
        )


def end(process: subprocess.Popen[bytes]) -> None:
    """End what is left of it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


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
        refuse("there is no compute-sanitizer; it is part of the CUDA toolkit: put its bin on the PATH")
    require_gpu()
    # Every tensor gets memory of its own, so that its end is the end of what may be read.
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "PYTHONUNBUFFERED": "1"}
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="cleave-sanitize-") as folder:
        logs = {tool: Path(folder, tool) for tool in asked.tool or TOOLS}
        running: dict[str, subprocess.Popen[bytes]] = {}
        are_well = []
        try:
            for tool, log in logs.items():
                running[tool] = start(command(sanitizer, tool), environment, log)
            while running:
                is_late = time.monotonic() > began + asked.seconds
                for tool, process in list(running.items()):
                    code = process.poll()
                    if code is not None or is_late:
                        end(running.pop(tool))
                        are_well.append(verdict(tool, code, logs[tool], time.monotonic() - began))
                time.sleep(0.2)
        finally:
            for process in running.values():
                end(process)
    sys.exit(0 if all(are_well) else 1)


if __name__ == "__main__":
    main()
