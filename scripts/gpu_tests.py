"""Run every test that needs an NVIDIA GPU, some files side by side, and give one verdict.

Each file is one pytest process; all of them share the GPU, and one engine cache, so that an engine which
several files need is built once. Exit code 0: tests passed, and every other one says why it was skipped.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from refusal import refuse, require_gpu

ROOT = Path(__file__).resolve().parent.parent
LONGEST = (
    "tests/gpu/test_start.py",
    "tests/kvcache/test_flashinfer.py",
    "tests/gpu/test_long_run.py",
    "tests/gpu/test_large_shape.py",
    "tests/gpu/test_bench.py",
    "tests/gpu/test_inductor.py",
    "tests/gpu/test_deterministic.py",
)
"""These are begun first, in this order, so that the last one to run is short."""
ELSEWHERE = (
    "tests/kvcache/test_triton.py",
    "tests/runtime/inductor/test_small.py",
    "tests/runtime/sampling/test_device.py",
    "tests/runtime/sampling/test_likeliest.py",
    "tests/runtime/sampling/test_alignment.py",
)
"""Where kernels are tested by the same tests as in Triton's interpreter."""
SLOWEST = 8
_NO_TESTS = 5
"""What pytest ends with where a whole file is skipped, or none of its tests is asked for."""
END = 10
"""Seconds that a file has to end in after it was interrupted."""


@dataclass
class File:
    """One file of tests, and what became of it."""

    path: str
    folder: Path
    began: float = 0.0
    seconds: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    tests: list[tuple[float, str]] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    """Reasons, and how many tests were skipped for each."""
    process: subprocess.Popen[bytes] | None = None
    was_interrupted: bool = False

    def start(self, environment: dict[str, str], options: Sequence[str]) -> None:
        """Begin its tests, in a process group of their own."""
        self.folder.mkdir()
        command = [sys.executable, "-m", "pytest", "-v", "--tb=short", "-p", "no:cacheprovider"]
        command += [f"--junitxml={self.report}", f"--basetemp={self.folder / 'tmp'}", *options, self.path]
        self.began = time.monotonic()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
            )

    @property
    def log(self) -> Path:
        """What pytest prints."""
        return self.folder / "log"

    @property
    def report(self) -> Path:
        """What pytest says of each test."""
        return self.folder / "report.xml"

    @property
    def has_passed(self) -> bool:
        """Whether all of it ran to its end, and nothing failed; a file may be skipped whole."""
        if self.process is None or self.was_interrupted or self.counts["failure"] or self.counts["error"]:
            return False
        return self.process.returncode in (0, _NO_TESTS)

    def interrupt(self) -> None:
        """Ask pytest to end, which then says where it was."""
        if self.process is not None and self.process.poll() is None:
            self.was_interrupted = True
            self._signal(signal.SIGINT)

    def kill(self) -> None:
        """End all of its processes, also those that pytest has left behind."""
        if self.process is not None:
            self._signal(signal.SIGKILL)
            self.process.wait()

    def _signal(self, number: int) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)

    def read(self) -> None:
        """Count what the report says, where there is a whole one."""
        self.seconds = time.monotonic() - self.began
        try:
            told = ElementTree.parse(self.report).getroot()
        except (FileNotFoundError, ElementTree.ParseError):  # pytest died, perhaps while it wrote
            return
        for case in told.iter("testcase"):
            found = {child.tag: child for child in case}
            state = next((tag for tag in ("failure", "error", "skipped") if tag in found), "passed")
            self.counts[state] += 1
            if state == "skipped":
                self.skipped[reason(found["skipped"])] += 1
            self.tests.append((float(case.get("time", 0)), f"{self.path}::{case.get('name')}"))

    def line(self) -> str:
        """Its verdict."""
        counted = ", ".join(f"{count} {state}" for state, count in sorted(self.counts.items()))
        state = "ok" if self.has_passed else "interrupted" if self.was_interrupted else "FAILED"
        none = "no tests" if self.has_passed else "no report"
        return f"{state:11} {self.seconds:5.0f} s  {self.path}  {counted or none}"


def run(
    files: list[File], workers: int, seconds: float, environment: dict[str, str], options: Sequence[str]
) -> None:
    """Run them, `workers` at a time, and print a line as each ends; after `seconds` interrupt the rest."""
    ends = time.monotonic() + seconds
    waiting, running = list(files), list[File]()
    try:
        while waiting or running:
            while waiting and len(running) < workers and time.monotonic() < ends:
                running.append(waiting.pop(0))
                running[-1].start(environment, options)
            if time.monotonic() > ends:
                waiting.clear()
                interrupt(running)
            for file in [one for one in running if one.process is None or one.process.poll() is not None]:
                running.remove(file)
                file.kill()
                file.read()
                print(file.line(), flush=True)
            time.sleep(0.1)
    except BaseException:
        interrupt(running)
        raise


def interrupt(files: list[File]) -> None:
    """End what runs: pytest says where it was, and what does not end then is killed."""
    for file in files:
        file.interrupt()
    ends = time.monotonic() + END
    for file in files:
        if file.process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                file.process.wait(max(0.1, ends - time.monotonic()))
            file.kill()


def report(files: list[File], seconds: float) -> bool:
    """Print what failed, what was skipped and why, and what took longest; whether all is well.

    It is not where nothing was tested.
    """
    failed = [file for file in files if not file.has_passed]
    for file in failed:
        if file.log.is_file():
            print(f"\n==== {file.path}\n{tail(file.log)}")
    skipped = sum((file.skipped for file in files), Counter())
    for why, count in sorted(skipped.items()):
        print(f"skipped {count}: {why}")
    slowest = sorted((test for file in files for test in file.tests), reverse=True)[:SLOWEST]
    print("\n".join(f"{taken:6.1f} s  {name}" for taken, name in slowest))
    counts = sum((file.counts for file in files), Counter())
    told = ", ".join(
        f"{counts[state]} {state}" for state in ("passed", "failure", "error", "skipped") if counts[state]
    )
    if failed:
        told += "; not well: " + ", ".join(file.path for file in failed)
    elif not counts["passed"]:
        told += "; nothing was tested"
    is_well = not failed and counts["passed"] > 0
    print(f"{'passed' if is_well else 'FAILED'} in {seconds:.0f} s: {told}")
    return is_well


def reason(skipped: ElementTree.Element) -> str:
    """Why a test was skipped, or a whole file, of which the report tells more in its text."""
    _, _, whole = (skipped.text or "").rpartition("'Skipped: ")
    message = skipped.get("message", "")
    return whole.rstrip("')") if message == "collection skipped" and whole else message


def tail(log: Path, lines: int = 60) -> str:
    """The end of a log."""
    return "\n".join(log.read_text("utf-8", errors="replace").splitlines()[-lines:])


def named() -> Iterator[str]:
    """All files, the longest ones first."""
    yield from LONGEST
    found = sorted(str(file.relative_to(ROOT)) for file in (ROOT / "tests" / "gpu").glob("test_*.py"))
    yield from (file for file in (*ELSEWHERE, *found) if file not in LONGEST)


def terminate(number: int, frame: FrameType | None) -> None:
    """End as after an interrupt: the tests are in process groups of their own, and would go on."""
    sys.exit(128 + number)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*", help="Files of tests. Default: all.")
    parser.add_argument("--workers", type=int, default=3, help="Files that run side by side. Default: 3.")
    parser.add_argument(
        "--seconds",
        type=float,
        default=540,
        help="After so many what still runs is interrupted. Default: 540.",
    )
    parser.add_argument(
        "--keep", type=Path, help="A new folder for logs and reports. Default: none are kept."
    )
    parser.add_argument(
        "--pytest", default="", help='More options of pytest, such as --pytest="-k float16 -x".'
    )
    asked = parser.parse_args()
    require_gpu()
    if asked.keep is not None and asked.keep.exists():
        refuse(f"--keep: {asked.keep} exists; name a new folder")
    signal.signal(signal.SIGTERM, terminate)
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        if asked.keep is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cleave-gpu-tests-")))
        else:
            folder = asked.keep.resolve()
            folder.mkdir(parents=True)
        environment = os.environ | {"CLEAVE_TESTS_CACHE": str(folder / "engines"), "PYTHONUNBUFFERED": "1"}
        files = [
            File(path, folder / f"{number:02}-{Path(path).stem}")
            for number, path in enumerate(asked.files or named())
        ]
        try:
            run(files, asked.workers, asked.seconds, environment, shlex.split(asked.pytest))
        except KeyboardInterrupt:
            sys.exit(130)
        is_well = report(files, time.monotonic() - began)
    sys.exit(0 if is_well else 1)


if __name__ == "__main__":
    main()
