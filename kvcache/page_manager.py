"""The page manager: which sequence holds which pages, and which pages later sequences can share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cleave.errors import AttentionError, OutOfPages
from cleave.kvcache.budget import pages_for
from cleave.kvcache.keys import PageKeys
from cleave.kvcache.page_map import CACHED, FREE, SHARED, PageMap
from cleave.kvcache.pool import PagePool
from cleave.kvcache.prefix import PrefixCache, PrefixStats
from cleave.kvcache.step import Chunk
from cleave.kvcache.table import PageTable, PageTables


@dataclass(slots=True)
class _Reserved:
    """The step between reserve() and commit() or rollback(), and the pages each table had before."""

    chunks: tuple[Chunk, ...]
    pages_before: list[int]


class PageManager:
    """Page pool, page tables and prefix cache of one attention server; it knows nothing of storage.

    Every page is free, or used by sequences, or cached: kept for the prefix cache alone. A page is
    written by the one sequence that holds it, and never again once it can be found by others.
    """

    def __init__(self, num_pages: int, page_size: int) -> None:
        """`num_pages` pages of `page_size` tokens, all free."""
        if page_size <= 0:
            raise AttentionError(f"page_size is {page_size}; it must be positive")
        self.page_size = page_size
        self._pool = PagePool(num_pages)
        self._prefix = PrefixCache(self._pool)
        self._rows = PageTables()
        self._tables: dict[int, PageTable] = {}
        self._reserved: _Reserved | None = None

    @property
    def num_pages(self) -> int:
        """Pages in all."""
        return self._pool.num_pages

    @property
    def free_pages(self) -> int:
        """Pages that hold nothing."""
        return self._pool.free_pages

    @property
    def cached_pages(self) -> int:
        """Pages that no sequence holds and the prefix cache keeps until their place is needed."""
        return self._prefix.idle_pages

    @property
    def available_pages(self) -> int:
        """Pages that a step can have: the free and the cached ones."""
        return self._pool.free_pages + self._prefix.idle_pages

    @property
    def stats(self) -> PrefixStats:
        """Hits of the prefix cache, in tokens."""
        return self._prefix.stats

    def open(self, sequence: int, keys: PageKeys | None = None) -> int:
        """Make a sequence; gives back how many tokens of its history are in the cache already.

        With `keys` the sequence starts with the pages that hold its beginning, and shares those that it
        fills: `keys` must then be extended with its tokens before they are committed. Raises
        AttentionError where the sequence is open already.
        """
        if sequence in self._tables:
            raise AttentionError(f"sequence {sequence} is open already; close it first")
        table = PageTable(self._rows, self.page_size, keys)
        if keys is not None:
            pages = self._prefix.find(keys)
            self._prefix.take(pages)
            table.extend(pages)
            table.published = len(pages)
            table.length = len(pages) * self.page_size
            self._prefix.stats.asked += keys.tokens
            self._prefix.stats.found += table.length
        self._tables[sequence] = table
        return table.length

    def close(self, sequence: int) -> None:
        """Forget a sequence and give its pages back.

        Raises AttentionError for a sequence that is not open, or that is in the planned step.
        """
        table = self.table(sequence)
        if self._reserved is not None and any(chunk.sequence == sequence for chunk in self._reserved.chunks):
            raise AttentionError(f"sequence {sequence} is in the planned step; commit() or rollback() first")
        self._prefix.give_back(table.pages.tolist())
        table.close()
        del self._tables[sequence]

    def is_open(self, sequence: int) -> bool:
        """Whether the sequence was opened and not closed."""
        return sequence in self._tables

    def gather(self, tables: Sequence[PageTable]) -> npt.NDArray[np.int32]:
        """[tables, pages] int32: the pages of each table in order; unused entries are -1."""
        return self._rows.gather([table.row for table in tables], max(table.count for table in tables))

    def length(self, sequence: int) -> int:
        """Tokens of the sequence that the cache holds. Raises AttentionError where it is not open."""
        return self.table(sequence).length

    def table(self, sequence: int) -> PageTable:
        """The page table of a sequence. Raises AttentionError where it is not open."""
        table = self._tables.get(sequence)
        if table is None:
            raise AttentionError(f"sequence {sequence} is not open; call open({sequence}) first")
        return table

    def cost(self, tokens: int, keys: PageKeys | None) -> int:
        """How many of the available pages a new sequence takes until it holds `tokens` tokens."""
        found = [] if keys is None else self._prefix.find(keys)
        return pages_for(tokens, self.page_size) - len(found) + self._prefix.idle_among(found)

    def needed(self, step: Sequence[Chunk]) -> int:
        """Pages that `reserve(step)` takes; a sequence that is not open counts as empty."""
        needed = 0
        for chunk in step:
            pages = pages_for(chunk.start + chunk.count, self.page_size)
            table = self._tables.get(chunk.sequence)
            needed += max(0, pages - table.count) if table else pages
        return needed

    def reserve(self, step: Sequence[Chunk]) -> list[PageTable]:
        """Give the sequences of a step the pages it needs; their tables, in the order of the chunks.

        Pages that the prefix cache had to give up for it stay given up on rollback(), since the step may
        have written to them. Raises OutOfPages, with nothing changed, where too few are available,
        AttentionError where a step is planned already.
        """
        if self._reserved is not None:
            raise AttentionError("a step is planned already; commit() or rollback() it first")
        tables = [self.table(chunk.sequence) for chunk in step]
        pages_before = [table.count for table in tables]
        growing: list[tuple[PageTable, int]] = []
        size, missing = self.page_size, 0
        for table, chunk in zip(tables, step, strict=True):
            if chunk.start + chunk.count > table.count * size:
                growing.append((table, table.missing(chunk.start + chunk.count)))
                missing += growing[-1][1]
        fresh = self._allocate(missing)
        self._reserved = _Reserved(tuple(step), pages_before)
        taken = 0
        for table, count in growing:
            table.extend(fresh[taken : taken + count])
            taken += count
        return tables

    def commit(self, *, share: bool = True) -> None:
        """End the step: its tokens belong to their sequences, and its full pages can be found.

        Where it is not known yet what came of the step, `share` is False, and its pages are offered later by
        `share`. Raises AttentionError where none is planned.
        """
        tables, size = self._tables, self.page_size
        for chunk in self._end().chunks:
            table = tables[chunk.sequence]
            table.length = end = chunk.start + chunk.count
            if share and table.keys is not None and end // size > table.published:
                self._publish(table, table.keys, end)

    def share(self, sequence: int, tokens: int) -> None:
        """Let later sequences find the full pages of the first `tokens` tokens of a sequence.

        Raises AttentionError where it is not open, or does not store so many.
        """
        table = self.table(sequence)
        if tokens > table.length:
            raise AttentionError(
                f"sequence {sequence} stores {table.length} tokens; the pages of {tokens} cannot be shared"
            )
        if table.keys is not None:
            self._publish(table, table.keys, tokens)

    def rollback(self) -> None:
        """Undo the step: tables and lengths are as before. Raises AttentionError where none is planned."""
        reserved = self._end()
        taken: list[int] = []
        for chunk, count in zip(reserved.chunks, reserved.pages_before, strict=True):
            taken += self._tables[chunk.sequence].shrink(count)
        self._pool.release(taken)

    @property
    def has_step(self) -> bool:
        """Whether a step is planned and has not ended."""
        return self._reserved is not None

    def map(self) -> PageMap:
        """Who holds which page now."""
        holders = np.full(self.num_pages, FREE, np.int64)
        holders[self._prefix.idle] = CACHED
        for sequence, table in self._tables.items():
            before = holders[table.pages]
            holders[table.pages] = np.where(before == FREE, sequence, SHARED)
        return PageMap(holders)

    def clear_prefix_cache(self) -> None:
        """Forget all that could be shared; cached pages become free."""
        self._prefix.clear()

    def check(self) -> None:
        """Raise AttentionError unless every page is accounted for.

        Each page's users are the tables that hold it and the prefix cache; a page that is still
        written has one user; no table has more pages than its tokens need.
        """
        self._pool.check()
        self._prefix.check()
        held = [0] * self.num_pages
        for table in self._tables.values():
            for page in table.pages.tolist():
                held[page] += 1
        for page, count in enumerate(held):
            users = count + self._prefix.is_findable(page)
            if self._pool.users(page) != users:
                raise AttentionError(
                    f"page {page} is in {count} page tables"
                    f"{' and the prefix cache' * self._prefix.is_findable(page)}, "
                    f"and has {self._pool.users(page)} users"
                )
        for sequence, table in self._tables.items():
            if self._reserved is None and table.count != pages_for(table.length, self.page_size):
                raise AttentionError(
                    f"sequence {sequence} has {table.count} pages for {table.length} tokens, "
                    f"{self.page_size} a page"
                )
            for page in table.pages[table.length // self.page_size :].tolist():
                if self._pool.users(page) != 1:
                    raise AttentionError(f"page {page} is written by sequence {sequence} and has other users")

    def _allocate(self, count: int) -> list[int]:
        if count > self.available_pages:
            raise OutOfPages(
                f"{count} more KV pages are needed and {self.available_pages} of {self.num_pages} are free; "
                "end or preempt a sequence, or make the cache larger (num_pages)"
            )
        self._prefix.make_room(count)
        return self._pool.allocate(count)

    def _publish(self, table: PageTable, keys: PageKeys, tokens: int) -> None:
        """Offer the pages that the first `tokens` tokens fill to the prefix cache."""
        full = min(tokens // self.page_size, len(keys))
        while table.published < full:
            self._prefix.publish(keys[table.published], int(table.pages[table.published]))
            table.published += 1

    def _end(self) -> _Reserved:
        reserved = self._reserved
        if reserved is None:
            raise AttentionError("no step is planned; there is nothing to commit or to roll back")
        self._reserved = None
        return reserved
