"""The attention backend `flashinfer`: that of `triton`, but for chunks, which are FlashInfer's."""

from __future__ import annotations

from cleave.errors import AttentionError, MissingPackage
from cleave.kvcache.backend import CacheShape

try:
    from cleave.kvcache.backends.device_tensors import checked_dtype
    from cleave.kvcache.backends.triton import TritonBackend
    from cleave.kvcache.backends.triton_chunks import Chunks
except ImportError as error:
    raise MissingPackage(error.name or "triton", "gpu", "the flashinfer attention backend") from None
try:
    from cleave.kvcache.backends.flashinfer_chunks import FlashInferChunks
except ImportError:
    raise MissingPackage("flashinfer-python", "flashinfer", "the flashinfer attention backend") from None

_DTYPES = ("float16", "bfloat16")
_HEAD_DIMS = (64, 128, 256)


class FlashInferBackend(TritonBackend):
    """Attention on torch tensors of one NVIDIA GPU, the KV cache in `dtype` after RoPE.

    Decode steps, and chunks of one token, are those of the backend `triton`, and so is `graph_key`.
    """

    _name = "flashinfer"
    _appends_queries = True

    def __init__(
        self,
        shape: CacheShape,
        *,
        device: str = "cuda",
        dtype: str = "float16",
        deterministic: bool = False,
        max_sequences: int | None = None,
    ) -> None:
        """Allocate everything; `max_sequences` bounds the chunks of a step (None: 512, or max_tokens).

        Raises AttentionError where there is no GPU of compute capability 8.0 or higher, for a dtype or a
        head_dim that FlashInfer lacks, for `deterministic`, or where the cache does not fit.
        """
        checked_dtype(dtype, _DTYPES)
        if deterministic:
            raise AttentionError(
                "the flashinfer attention backend cannot be deterministic: take attention 'triton'"
            )
        for spec in shape.specs:
            if spec.head_dim not in _HEAD_DIMS:
                raise AttentionError(
                    f"head_dim {spec.head_dim} is not among those of FlashInfer, "
                    f"{', '.join(map(str, _HEAD_DIMS))}: take attention 'triton'"
                )
        super().__init__(shape, device=device, dtype=dtype, max_sequences=max_sequences)

    def _room_of_chunks(self) -> int:
        return FlashInferChunks.room(self._shape, self._max_sequences)

    def _make_chunks(self) -> Chunks:
        return FlashInferChunks(self._shape, self._dtype, self._layers)
