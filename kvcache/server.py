"""The attention server: the pages and their storage, and one step at a time as a transaction."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import partial
from typing import Any

import numpy as np

from cleave.errors import AttentionError, OutOfPages
from cleave.kvcache.backend import BackendFactory, CacheShape, LayerJobs, check_specs, create_backend
from cleave.kvcache.page_manager import PageManager
from cleave.kvcache.spec import AttentionSpec
from cleave.kvcache.step import Chunk, StepPlan
from cleave.kvcache.table import PageTable


class AttentionServer:
    """Owner of the KV cache of one model.

    A step is a transaction: `plan(step)`, then `run(layer, q, k, v, out)` once for each layer, or the jobs of
    `jobs(q, k, v, out)`, then `commit()`, or `rollback()` after which pages and lengths are as before
    `plan`. A server is used by one thread at a time; any number of servers live in one process.
    """

    def __init__(
        self,
        specs: Sequence[AttentionSpec],
        *,
        backend: str | BackendFactory = "cpu",
        num_pages: int,
        page_size: int = 16,
        max_position: int,
        max_tokens: int,
        **options: Any,
    ) -> None:
        """Allocate `num_pages` pages of `page_size` tokens for every layer of `specs`.

        `backend` is a name of `backend_names()`, or what makes one. `max_position` bounds the length of a
        sequence, `max_tokens` the rows of a step; `options` go to the backend. Raises AttentionError for
        values or backends that are not allowed, MissingPackage where the backend needs one.
        """
        for name, value in (
            ("page_size", page_size),
            ("max_position", max_position),
            ("max_tokens", max_tokens),
        ):
            if value <= 0:
                raise AttentionError(f"{name} is {value}; it must be positive")
        self._shape = CacheShape(check_specs(specs), num_pages, page_size, max_position, max_tokens)
        self.pages = PageManager(num_pages, page_size)
        """Who holds which pages; the scheduler opens and closes its sequences there."""
        make = partial(create_backend, backend) if isinstance(backend, str) else backend
        self._backend = make(self._shape, **options)
        self.steps = 0
        self.runs = 0

    @property
    def shape(self) -> CacheShape:
        """Layers, pages and limits of this server."""
        return self._shape

    @property
    def graph_key(self) -> Hashable | None:
        """What fixes the kernel launches of the planned step, beside the rows of q; None: do not capture it.

        The runs of a step that were captured in a CUDA graph serve every later step with an equal key and
        at most as many rows. Only decode steps of backends for GPUs have one.
        """
        key: Hashable | None = getattr(self._backend, "graph_key", None)
        return key

    @property
    def takes_padding(self) -> bool:
        """Whether q, k, v and out may have more rows than the step, all as many; out is zero there."""
        return bool(getattr(self._backend, "takes_padding", False))

    @property
    def num_pages(self) -> int:
        """Pages in all."""
        return self.pages.num_pages

    @property
    def free_pages(self) -> int:
        """Pages that no sequence holds; the prefix cache may still find some of them."""
        return self.pages.available_pages

    def open(self, sequence: int) -> None:
        """Make an empty sequence, which shares no pages. Raises AttentionError where it is open already."""
        self.pages.open(sequence)

    def close(self, sequence: int) -> None:
        """Forget a sequence and give its pages back.

        Raises AttentionError for a sequence that is not open, or that is in the planned step.
        """
        self.pages.close(sequence)

    def shutdown(self) -> None:
        """Give back memory and threads; the server is not used afterwards."""
        self._backend.close()
        self._backend = _NoBackend()

    def length(self, sequence: int) -> int:
        """Tokens of the sequence that the cache holds. Raises AttentionError where it is not open."""
        return self.pages.length(sequence)

    def pages_needed(self, step: Sequence[Chunk]) -> int:
        """Pages that `plan(step)` would take from the free ones.

        A sequence that is not open yet counts as empty, and limits are not checked.
        """
        return self.pages.needed(step)

    def plan(self, step: Sequence[Chunk]) -> StepPlan:
        """Check the step, reserve its pages and prepare the backend for it.

        Rows of the step are the tokens of its chunks, in order. Raises AttentionError for a step that
        is not allowed, OutOfPages where too few pages are free; in both cases nothing has changed.
        """
        self._check(step)
        try:
            tables = self.pages.reserve(step)
        except OutOfPages as error:
            raise OutOfPages(
                f"a step of {len(step)} chunks and {_rows(step)} tokens cannot run: {error}"
            ) from None
        try:
            plan = self._build(step, tables)
            self._backend.plan(plan)
        except BaseException:
            self.pages.rollback()
            raise
        return plan

    def run(self, layer: int, q: Any, k: Any, v: Any, out: Any) -> None:
        """Attention of one layer for every row of the planned step.

        q, out: [tokens, heads * head_dim]; k, v: [tokens, kv_heads * head_dim], before RoPE;
        row-major, one dtype, on the backend's device. out is overwritten. Raises AttentionError where
        no step is planned, the layer does not exist, or an array does not fit.
        """
        if not self.pages.has_step:
            raise AttentionError("no step is planned; call plan(step) before run(layer, ...)")
        if not 0 <= layer < len(self._shape.specs):
            raise AttentionError(
                f"there is no layer {layer}; this server has layers 0 to {len(self._shape.specs) - 1}"
            )
        self._backend.run(layer, q, k, v, out)
        self.runs += 1

    def jobs(self, q: Any, k: Any, v: Any, out: Any) -> LayerJobs | None:
        """What does as `run` for every layer of the planned step, each with these same arrays.

        For engines that call compiled functions from their own threads, without Python between two layers:
        they run the jobs of all layers in order, each once. None where the backend has no such functions.
        Raises AttentionError where no step is planned or an array does not fit.
        """
        if not self.pages.has_step:
            raise AttentionError("no step is planned; call plan(step) before jobs(q, k, v, out)")
        make = getattr(self._backend, "jobs", None)
        found: LayerJobs | None = None if make is None else make(q, k, v, out)
        if found is not None:
            self.runs += len(found.entries)
        return found

    def commit(self, *, share: bool = True) -> None:
        """End the step: its tokens now belong to their sequences.

        A step that was only launched can be committed too: what is run later on the same stream finds its
        k and v. Then `share` is False: nobody else may find its pages until it is known to have gone well.
        Raises AttentionError where none is planned.
        """
        self.pages.commit(share=share)
        self.steps += 1

    def rollback(self) -> None:
        """Undo the step: pages and lengths are as before plan().

        Raises AttentionError where none is planned.
        """
        self.pages.rollback()

    def check(self) -> None:
        """Raise AttentionError unless every page is accounted for; see `PageManager.check`."""
        self.pages.check()

    def _check(self, step: Sequence[Chunk]) -> None:
        if self.pages.has_step:
            raise AttentionError("a step is planned already; commit() or rollback() it first")
        if not step:
            raise AttentionError("the step is empty; it needs at least one chunk")
        names: set[int] = set()
        rows = 0
        for sequence, start, count in [(chunk.sequence, chunk.start, chunk.count) for chunk in step]:
            length = self.pages.length(sequence)
            if count <= 0:
                raise AttentionError(f"the chunk of sequence {sequence} has {count} tokens; it needs one")
            if sequence in names:
                raise AttentionError(
                    "a sequence has two chunks in one step; join them, or run them one after the other"
                )
            if start != length:
                raise AttentionError(
                    f"the chunk of sequence {sequence} starts at {start}; "
                    f"the cache holds {length} tokens, so it must start at {length}"
                )
            if start + count > self._shape.max_position:
                raise AttentionError(
                    f"sequence {sequence} would grow to {start + count} tokens; "
                    f"max_position allows {self._shape.max_position}"
                )
            names.add(sequence)
            rows += count
        if rows > self._shape.max_tokens:
            raise AttentionError(
                f"the step has {rows} tokens; max_tokens allows {self._shape.max_tokens}: split it"
            )

    def _build(self, step: Sequence[Chunk], tables: list[PageTable]) -> StepPlan:
        starts = np.array([chunk.start for chunk in step], np.int64)
        page_table = self.pages.gather(tables)
        if _rows(step) == len(step):  # every sequence decodes
            offsets = np.arange(len(step) + 1)
            chunk_of_row, positions = offsets[:-1], starts
        else:
            offsets = np.zeros(len(step) + 1, np.int64)
            counts = np.array([chunk.count for chunk in step], np.int64)
            np.cumsum(counts, out=offsets[1:])
            chunk_of_row = np.repeat(np.arange(len(step)), counts)
            positions = np.arange(offsets[-1]) + (starts - offsets[:-1])[chunk_of_row]
        pages, places = np.divmod(positions, self._shape.page_size)
        slots = page_table[chunk_of_row, pages].astype(np.int64) * self._shape.page_size + places
        return StepPlan(offsets, starts, positions, slots, page_table)


class _NoBackend:
    """In the place of a backend that was closed, so that nobody holds on to its memory."""

    def plan(self, step: StepPlan) -> None:
        """Raises AttentionError."""
        raise AttentionError("the attention server was shut down; make another one")

    def run(self, layer: int, q: Any, k: Any, v: Any, out: Any) -> None:
        """Raises AttentionError: the step that was planned is lost."""
        raise AttentionError("the attention server was shut down in the middle of a step; make another one")

    def close(self) -> None:
        """Nothing is left to give back."""


def _rows(step: Sequence[Chunk]) -> int:
    return sum(chunk.count for chunk in step)
