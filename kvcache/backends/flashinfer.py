"""The attention backend `flashinfer`: that of `triton`, but for chunks with long histories."""

from __future__ import annotations

from cleave.errors import AttentionError, MissingPackage, reason
from cleave.kvcache.backend import CacheShape
from cleave.kvcache.backends.flashinfer_fit import DTYPES, HEAD_DIMS, is_faster, lacking, reach
from cleave.kvcache.step import StepPlan

try:
    import numpy as np
    import torch

    from cleave.kvcache.backends.device_tensors import checked_dtype, no_room
    from cleave.kvcache.backends.flashinfer_kernels import HOPPER, is_hopper
    from cleave.kvcache.backends.triton import TritonBackend
    from cleave.kvcache.backends.triton_chunks import Chunks
    from cleave.kvcache.backends.triton_device import usable
    from cleave.kvcache.backends.triton_tuning import Tuning
except ImportError as error:
    raise MissingPackage(error.name or "triton", "gpu", "the flashinfer attention backend") from None
try:
    from cleave.kvcache.backends.flashinfer_chunks import FlashInferChunks
except ImportError:
    raise MissingPackage("flashinfer-python", "flashinfer", "the flashinfer attention backend") from None

_KERNELS = (HOPPER, "fa2")


class FlashInferBackend(TritonBackend):
    """Attention on torch tensors of one NVIDIA GPU, the KV cache in `dtype` after RoPE.

    Attention to the chunks of a step is FlashInfer's where that was measured to be faster, see
    `flashinfer_fit`. Other steps, and chunks of one token, are those of the backend `triton`, and so is
    `graph_key`.
    """

    _name = "flashinfer"

    def __init__(
        self,
        shape: CacheShape,
        *,
        device: str = "cuda",
        dtype: str = "float16",
        deterministic: bool = False,
        max_sequences: int | None = None,
        kernels: str | None = None,
    ) -> None:
        """Allocate everything; `max_sequences` bounds the chunks of a step (None: 512, or max_tokens).

        `kernels`, for comparisons: FlashInfer's "fa3" or "fa2" for the chunks of every step; None: "fa3" for
        those that it is faster for. They are compiled here where they never have been, which takes minutes.
        Raises AttentionError where there is no GPU of compute capability 9.0 ("fa2": 8.0 or higher), for a
        dtype or a head_dim that FlashInfer lacks, for `deterministic`, where its kernels cannot be compiled,
        or where the cache does not fit.
        """
        checked_dtype(dtype, DTYPES)
        if deterministic:
            raise AttentionError(
                "the flashinfer attention backend cannot be deterministic: take attention 'triton'"
            )
        head_dim = lacking(shape.specs)
        if head_dim is not None:
            raise AttentionError(
                f"head_dim {head_dim} is not among those of FlashInfer, "
                f"{', '.join(map(str, HEAD_DIMS))}: take attention 'triton'"
            )
        if kernels not in (None, *_KERNELS):
            raise AttentionError(f"FlashInfer has no kernels {kernels!r}; there are: {', '.join(_KERNELS)}")
        self._kernels = kernels or HOPPER
        self._is_asked = kernels is not None
        self._check_device(usable(device, self._name))
        self._reach = reach(shape.specs, shape.max_position)
        super().__init__(shape, device=device, dtype=dtype, max_sequences=max_sequences)
        try:
            self._warm_up(self._chunks)
        except torch.OutOfMemoryError:
            raise no_room(shape, dtype) from None
        try:
            self._warm_up(self._long)
        except torch.OutOfMemoryError:
            raise no_room(shape, dtype) from None
        except (OSError, RuntimeError) as error:
            raise _no_kernels(error) from None

    def close(self) -> None:
        """Give the pages back."""
        super().close()
        vars(self).pop("_long", None)

    def _check_device(self, device: torch.device) -> None:
        if device.type == "cuda" and self._kernels == HOPPER and not is_hopper(device):
            major, minor = torch.cuda.get_device_capability(device)
            raise AttentionError(
                f"{torch.cuda.get_device_name(device)} has compute capability {major}.{minor}; those kernels "
                "of FlashInfer that are faster than Triton's are for 9.0: take attention 'triton'"
            )

    def _allocate(self, kind_of_layer: list[int], tunings: list[Tuning]) -> None:
        super()._allocate(kind_of_layer, tunings)
        try:
            self._long = FlashInferChunks(self._shape, self._dtype, self._layers, self._kernels)
        except torch.OutOfMemoryError:
            raise
        except (OSError, RuntimeError) as error:
            raise _no_kernels(error) from None

    def _room_of_chunks(self) -> int:
        return max(super()._room_of_chunks(), FlashInferChunks.room(self._shape, self._max_sequences))

    def _attention_of(self, step: StepPlan) -> Chunks:
        return self._long if self._is_asked or is_faster(step, self._reach) else self._chunks

    def _warm_up(self, attention: Chunks) -> None:
        """Run a chunk of two tokens this way: it may be long before the first request that needs it."""
        pages = -(-2 // self._shape.page_size)
        if min(self._shape.max_tokens, self._shape.max_position) < 2 or self._shape.num_pages < pages:
            return
        two, table = np.arange(2), np.arange(pages, dtype=np.int32)[None]
        self._plan(StepPlan(two * 2, np.zeros(1, np.int64), two, two, table), attention)
        for spec, layer in {own.spec: layer for layer, own in enumerate(self._layers)}.items():
            columns = [spec.q_size, spec.kv_size, spec.kv_size]
            fused = torch.zeros(2, sum(columns), dtype=self._dtype, device=self._device)
            q, k, v = torch.split(fused, columns, dim=1)
            self.run(layer, q, k, v, torch.empty_like(q, memory_format=torch.contiguous_format))
        self._step = None


def _no_kernels(error: Exception) -> AttentionError:
    return AttentionError(
        f"FlashInfer can neither load nor compile its kernels: {reason(error)}; put nvcc and ninja on the "
        "PATH, install flashinfer-jit-cache, or take attention 'triton'"
    )
