"""Whether a batch fits the context and the memory, said before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass

import psutil

from cleave.errors import BenchError
from cleave.export.artifact import Artifact
from cleave.kvcache.budget import mib, page_bytes, pages_for
from cleave.kvcache.memory_plan import ITEM_BYTES
from cleave.runtime.engines.cuda import cuda_is_usable
from cleave.runtime.engines.engine import best_engine_kind
from cleave.runtime.engines.kinds import engine_kind

PAGE_SIZE = 16


@dataclass(frozen=True, slots=True)
class Memory:
    """The memory that weights and KV cache go into."""

    free: int
    """Bytes."""
    item_bytes: int = 4
    """Of a value of the weights that are not quantised, and of a cached one."""

    @classmethod
    def of(cls, engine: str | None, device: str | None, artifact: Artifact) -> Memory:
        """That of the device on which an engine of this kind will run; None: the best kind, its own choice.

        Raises EngineError for a kind that is not there, or a device that it does not compute on.
        """
        kind = engine_kind(engine or best_engine_kind(artifact))
        kind.check_device(device)
        if (device or kind.devices[-1]).startswith("cpu") or not cuda_is_usable():
            return cls(psutil.virtual_memory().available)
        import torch  # an engine on a GPU brings it anyway

        return cls(torch.cuda.mem_get_info()[0], ITEM_BYTES[artifact.manifest.dtype])


def kv_bytes_for(
    artifact: Artifact, batch: int, prompt: int, output: int, memory: Memory | None = None
) -> int:
    """Bytes of KV cache that `batch` requests of this length take; `memory` None: that of the processor.

    Raises BenchError where the context is too short or the memory too small, and says what would fit.
    """
    memory = memory or Memory(psutil.virtual_memory().available)
    for name, value in (("batch", batch), ("prompt", prompt), ("output", output)):
        if value < 1:
            raise BenchError(f"{name} is {value}; it must be at least 1")
    context = artifact.manifest.max_position
    if prompt + output > context:
        raise BenchError(
            f"prompt {prompt} and output {output} are {prompt + output} tokens; the model's context has "
            f"{context}: with this prompt an output of up to {context - prompt} would fit"
            if prompt < context
            else f"a prompt of {prompt} does not fit the model's context of {context} with any output; "
            f"up to {context - 1} would"
        )
    page = page_bytes(artifact.manifest.layer_specs, PAGE_SIZE, memory.item_bytes)
    needed = batch * pages_for(prompt + output - 1, PAGE_SIZE) * page
    room = memory.free - _weight_bytes(artifact, memory.item_bytes)
    if needed > room:
        raise BenchError(_too_much(batch, prompt, output, needed, max(room, 0), page))
    return needed


def _too_much(batch: int, prompt: int, output: int, needed: int, room: int, page: int) -> str:
    pages = room // page
    most = pages // pages_for(prompt + output - 1, PAGE_SIZE)
    longest = pages // batch * PAGE_SIZE + 1
    fits = [f"batch {most} at this length"] if most else []
    if longest > 1 and pages // batch:
        fits.append(f"{longest} tokens a request, prompt and output together, at batch {batch}")
    return (
        f"batch {batch} with prompt {prompt} and output {output} needs {mib(needed)} of KV cache, "
        f"and beside the weights {mib(room)} of memory are free; "
        + (f"what would fit: {', or '.join(fits)}" if fits else "not even one such request would fit")
    )


def _weight_bytes(artifact: Artifact, item_bytes: int) -> int:
    stored = sum(tensor.nbytes for tensor in artifact.tensors.values())
    if artifact.manifest.quantization is not None:
        return stored
    return stored * item_bytes // ITEM_BYTES[artifact.manifest.dtype]
