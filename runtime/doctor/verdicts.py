"""Which engine kinds and attention backends can be used, and why. Pure: facts in, verdicts out."""

from __future__ import annotations

from dataclasses import dataclass

from cleave.kvcache.backend import backend_names
from cleave.runtime.doctor.facts import Facts
from cleave.runtime.engines.kinds import engine_kinds

_LEAST_GPU = "8.0"
"""Of the kernels for GPUs."""
_HOPPER = "9.0"
"""Of FlashInfer's kernels that are faster than Triton's."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether something can be used here."""

    name: str
    is_usable: bool
    why: str
    """What is missing and how to get it, or on what it runs."""


def engine_verdicts(facts: Facts) -> tuple[Verdict, ...]:
    """One for each engine kind, in the order of the registry."""
    known = {
        "onnxruntime": _onnxruntime,
        "inductor": _inductor,
        "tensorrt_rtx": _tensorrt_rtx,
        "tensorrt": _tensorrt,
    }
    return tuple(
        known[kind](facts) if kind in known else Verdict(kind, True, "nothing known against it")
        for kind in engine_kinds()
    )


def attention_verdicts(facts: Facts) -> tuple[Verdict, ...]:
    """One for each attention backend, in the order of the registry."""
    known = {"triton": _triton, "flashinfer": _flashinfer, "reference": _reference}
    return tuple(known[name](facts) if name in known else _on_host(name, facts) for name in backend_names())


def taken(facts: Facts) -> str:
    """Engine kind and attention backend that a model gets here where neither is asked for."""
    engine = facts.best_engine
    backend = "triton" if engine == "inductor" else "cpu"
    verdicts = (*engine_verdicts(facts), *attention_verdicts(facts))
    usable = {verdict.name for verdict in verdicts if verdict.is_usable}
    pair = f"{engine} + {backend}"
    if not {engine, backend} <= usable:
        return f"{pair}, which cannot be used; the verdicts on both say why"
    if engine != "inductor":
        return pair
    other = ", or flashinfer where it is compiled and the context is long" if "flashinfer" in usable else ""
    return f"{pair}{other}; onnxruntime + cpu for a quantised artifact"


def _onnxruntime(facts: Facts) -> Verdict:
    why = _missing(facts, "onnxruntime", None)
    how = [f"on the CPU, with {facts.cores} cores"]
    how += [facts.arithmetic] if facts.arithmetic else []
    how += ["large weights in huge pages"] if facts.huge_pages else []
    return Verdict("onnxruntime", why is None, why or "; ".join(how))


def _inductor(facts: Facts) -> Verdict:
    why = _missing(facts, "torch", "gpu")
    if why is None and not _cuda_problem(facts):
        return Verdict("inductor", True, f"on {_best_gpu(facts)}")
    return Verdict(
        "inductor", why is None, why or f"on the CPU only, with --device cpu: {_cuda_problem(facts)}"
    )


def _tensorrt_rtx(facts: Facts) -> Verdict:
    name = "tensorrt_rtx"
    why = _missing(facts, "tensorrt-rtx-cu13-bindings", "rtx") or _missing(facts, "torch", "rtx")
    if why is not None:
        return Verdict(name, False, why)
    built = f"builds for compute capability {', '.join(facts.rtx_capabilities)}"
    problem = _cuda_problem(facts)
    if problem is not None:
        return Verdict(name, False, f"{built}, but cannot run here: {problem}")
    fitting = [gpu for gpu in facts.gpus if gpu.compute_capability in facts.rtx_capabilities]
    if not fitting:
        found = ", ".join(f"{gpu.name} ({gpu.compute_capability})" for gpu in facts.gpus)
        return Verdict(name, False, f"{built}, and here is {found}; use the engine kind inductor")
    return Verdict(name, True, f"on {fitting[0].name}")


def _tensorrt(facts: Facts) -> Verdict:
    name = "tensorrt"
    why = _missing(facts, "tensorrt", "tensorrt") or _missing(facts, "cuda-bindings", "tensorrt")
    why = why or _missing(facts, "torch", "tensorrt") or _cuda_problem(facts)
    return Verdict(name, why is None, why or f"on {_best_gpu(facts)}")


def _triton(facts: Facts) -> Verdict:
    why = _missing(facts, "torch", "gpu") or _missing(facts, "triton", "gpu") or _cuda_problem(facts)
    return Verdict("triton", why is None, why or f"on {_best_gpu(facts)}")


def _flashinfer(facts: Facts) -> Verdict:
    extra = "flashinfer"
    why = _missing(facts, "torch", extra) or _missing(facts, "triton", extra)
    why = why or _missing(facts, "flashinfer-python", extra) or _cuda_problem(facts)
    if why is not None:
        return Verdict("flashinfer", False, why)
    fitting = [gpu for gpu in facts.gpus if gpu.compute_capability == _HOPPER]
    if not fitting:
        why = f"its fast kernels are for compute capability {_HOPPER}, and here is {_best_gpu(facts)}"
        return Verdict("flashinfer", False, f"{why}; take attention triton")
    return Verdict("flashinfer", True, f"on {fitting[0].name} (compute capability {_HOPPER})")


def _reference(facts: Facts) -> Verdict:
    why = _missing(facts, "torch", "export")
    return Verdict("reference", why is None, why or "on any device of torch; slow, for comparisons")


def _on_host(name: str, facts: Facts) -> Verdict:
    package = "onnxruntime" if name == "onnx" else "numba"
    why = _missing(facts, package, None)
    return Verdict(name, why is None, why or "on the CPU")


def _missing(facts: Facts, name: str, extra: str | None) -> str | None:
    """Why a package cannot be used; None where it can."""
    found = facts.package(name)
    if found.version is None:
        return f"{name} is not installed" + (f": pip install '.[{extra}]'" if extra else "")
    return f"{name} {found.version} cannot be imported: {found.error}" if found.error else None


def _cuda_problem(facts: Facts) -> str | None:
    """Why torch cannot compute on a GPU here; None where it can."""
    if facts.driver is None:
        return f"no NVIDIA driver ({facts.driver_error})"
    if not facts.gpus:
        return f"the NVIDIA driver {facts.driver} sees no GPU"
    newest = max(facts.gpus, key=lambda gpu: _order(gpu.compute_capability))
    if _order(newest.compute_capability) < _order(_LEAST_GPU):
        return f"{newest.name} has compute capability {newest.compute_capability}; {_LEAST_GPU} is needed"
    if facts.torch_cuda is None:
        return "this build of torch has no CUDA; install one that has"
    if not facts.torch_sees_gpu:
        visible = facts.environment.get("CUDA_VISIBLE_DEVICES", "not set")
        return (
            f"torch is built for CUDA {facts.torch_cuda} and sees no GPU: driver {facts.driver} runs CUDA up "
            f"to {facts.cuda}, and CUDA_VISIBLE_DEVICES is {visible}"
        )
    return None


def _best_gpu(facts: Facts) -> str:
    best = max(facts.gpus, key=lambda gpu: _order(gpu.compute_capability))
    return f"{best.name} (compute capability {best.compute_capability})"


def _order(capability: str) -> tuple[int, ...]:
    return tuple(int(part) for part in capability.split("."))
