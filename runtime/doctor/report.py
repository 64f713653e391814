"""The report: text for people and issue trackers, and the same as JSON."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from cleave.runtime.doctor.facts import Facts
from cleave.runtime.doctor.verdicts import Verdict, attention_verdicts, engine_verdicts, taken

_GIB = 1 << 30


def as_dict(facts: Facts) -> dict[str, Any]:
    """Facts and verdicts, for JSON."""
    return {
        **asdict(facts),
        "engines": [asdict(verdict) for verdict in engine_verdicts(facts)],
        "attention": [asdict(verdict) for verdict in attention_verdicts(facts)],
        "taken": taken(facts),
    }


def as_text(facts: Facts) -> str:
    """One paste: no colours, no line that is cut."""
    return "\n\n".join(
        [
            _section("machine", _machine(facts)),
            _section("GPU", _gpu(facts)),
            _section("packages", _packages(facts)),
            _section("extras", _extras(facts)),
            _section("engine kinds", _verdicts(engine_verdicts(facts))),
            _section("attention backends", _verdicts(attention_verdicts(facts))),
            _section("engine cache", _cache(facts)),
            *([_section("environment", facts.environment.items())] if facts.environment else []),
            f"`cleave serve` takes here: {taken(facts)}",
        ]
    )


def _section(title: str, rows: Iterable[tuple[str, str]]) -> str:
    listed = list(rows)
    width = max((len(name) for name, _ in listed), default=0)
    return "\n".join([f"{title}:", *(f"  {name:<{width}}  {value}" for name, value in listed)])


def _machine(facts: Facts) -> list[tuple[str, str]]:
    return [
        ("cleave", facts.cleave),
        ("python", facts.python),
        ("system", facts.system),
        ("cpu", f"{facts.cpu}, {facts.cores} cores"),
        ("memory", f"{facts.memory / _GIB:.1f} GiB"),
    ]


def _gpu(facts: Facts) -> list[tuple[str, str]]:
    if facts.driver is None:
        return [("driver", f"none ({facts.driver_error})")]
    gpus = [
        (f"cuda:{index}", f"{gpu.name}, compute capability {gpu.compute_capability}, {gpu.memory_mib} MiB")
        for index, gpu in enumerate(facts.gpus)
    ]
    return [("driver", f"{facts.driver}, for CUDA up to {facts.cuda or 'unknown'}"), *gpus]


def _packages(facts: Facts) -> list[tuple[str, str]]:
    rows = []
    for name, found in facts.packages.items():
        value = found.version or "not installed"
        if name == "torch" and found.version is not None:
            value += f", built for {f'CUDA {facts.torch_cuda}' if facts.torch_cuda else 'the CPU'}"
        rows.append((name, f"{value}, cannot be imported: {found.error}" if found.error else value))
    return rows


def _extras(facts: Facts) -> list[tuple[str, str]]:
    return [
        (name, f"lacks {', '.join(absent)}" if absent else "installed")
        for name, absent in facts.missing.items()
    ]


def _verdicts(verdicts: Iterable[Verdict]) -> list[tuple[str, str]]:
    return [
        (verdict.name, f"{'usable' if verdict.is_usable else 'not usable'}: {verdict.why}")
        for verdict in verdicts
    ]


def _cache(facts: Facts) -> list[tuple[str, str]]:
    cache = facts.cache
    if cache.error is not None:
        return [("folder", cache.error)]
    state = f"{cache.entries} engines, {cache.size / _GIB:.2f} GiB"
    return [("folder", cache.folder), ("holds", state if cache.is_writable else f"{state}; not writable")]
