"""Cleave beside its peers on a CPU: all that the goals in docs/benchmarks.md are about.

`python benchmarks/bench_cpu.py` measures every pair that was not measured yet by the code as it is now, each
in a process of its own, and writes one result for each; run it again to go on where it was interrupted, or
`--again` to measure all anew. With everything made beforehand (`--prepare`) it takes about 25 minutes on
two cores.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from record import RESULTS
from workshop import KEPT, ROOT, sources

_GRACE = 15 * 60
"""Seconds beyond its minutes that a run gets, to make what is missing and to load it."""


@dataclass(frozen=True)
class Pair:
    """A peer and a shape: one run of its script."""

    peer: str
    shape: str
    minutes: float
    """For repetitions; at least one is measured, however long it takes."""
    repetitions: int

    @property
    def name(self) -> str:
        """Of the result, and of the pair on the command line."""
        return f"vs_{self.peer}_{self.shape}"

    def command(self, work: Path, *, prepare: bool) -> list[str]:
        """What runs it; `prepare`: as short a run as makes all files."""
        script = f"benchmarks/vs_{self.peer}.py"
        how = ["--minutes", str(self.minutes), "--repetitions", str(self.repetitions)]
        if prepare:
            how = ["--repetitions", "0"]
        return [sys.executable, script, "--shape", self.shape, "--work", str(work), *how]


PAIRS = (
    Pair("transformers", "135m", 2.0, 5),
    Pair("onnxruntime_genai", "135m", 2.0, 5),
    Pair("llama_cpp", "135m", 2.0, 5),
    Pair("transformers", "1b", 6.0, 3),
    Pair("onnxruntime_genai", "1b", 6.0, 3),
    Pair("llama_cpp", "1b", 5.0, 3),
)


def main() -> int:
    """Run what is asked for; 1 where a pair failed."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("pairs", nargs="*", help=f"default: {' '.join(pair.name for pair in PAIRS)}")
    options.add_argument("--again", action="store_true", help="also pairs that were measured already")
    options.add_argument("--prepare", action="store_true", help="make all files, measure nothing")
    options.add_argument("--work", type=Path, default=KEPT, help="where checkpoints and the like are kept")
    given = options.parse_args()
    unknown = set(given.pairs) - {pair.name for pair in PAIRS}
    if unknown:
        options.error(f"there is no pair {', '.join(sorted(unknown))}")
    done = _Done(given.work)
    failed = []
    for pair in PAIRS:
        if given.pairs and pair.name not in given.pairs:
            continue
        if not (given.again or given.prepare) and pair.name in done:
            print(f"{pair.name}: measured already; --again measures it anew", flush=True)
            continue
        print(f"{pair.name}: {' '.join(pair.command(given.work, prepare=given.prepare)[1:])}", flush=True)
        began = time.monotonic()
        why = _run(pair, given.work, prepare=given.prepare)
        print(f"{pair.name}: {why or 'done'} after {time.monotonic() - began:.0f} s", flush=True)
        if why:
            failed.append(pair.name)
        elif not given.prepare:
            done.add(pair.name)
    if failed:
        print(f"failed: {', '.join(failed)}; run it again for these", file=sys.stderr)
    return 1 if failed else 0


def _run(pair: Pair, work: Path, *, prepare: bool) -> str | None:
    """None, or why there is no result."""
    limit = None if prepare else pair.minutes * 60 + _GRACE
    try:
        code = subprocess.run(
            pair.command(work.resolve(), prepare=prepare), cwd=ROOT, timeout=limit
        ).returncode
    except subprocess.TimeoutExpired:
        return f"ended, since it took more than {limit:.0f} s"
    if code < 0:
        hint = "; see the head of vs_llama_cpp.py" if pair.peer == "llama_cpp" else ""
        return f"ended by signal {-code}{hint}"
    return f"failed with exit code {code}" if code else None


class _Done:
    """Which results the code as it is has measured."""

    def __init__(self, work: Path) -> None:
        self._file = work / "measured.json"
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._code = sources("export", "plugins", "kvcache", "runtime", "cleave", "benchmarks")
        try:
            self._names: dict[str, str] = json.loads(self._file.read_text("utf-8"))
        except (OSError, ValueError):
            self._names = {}

    def __contains__(self, name: str) -> bool:
        return self._names.get(name) == self._code and (RESULTS / f"{name}.json").is_file()

    def add(self, name: str) -> None:
        self._names[name] = self._code
        draft = self._file.with_suffix(".new")
        draft.write_text(json.dumps(self._names, indent=1) + "\n", "utf-8")
        draft.replace(self._file)


if __name__ == "__main__":
    sys.exit(main())
