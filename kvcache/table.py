"""The page table of one sequence: its pages in order, and how many tokens they hold."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cleave.kvcache.keys import PageKeys


class PageTable:
    """Token t of the sequence is in page `pages[t // page_size]`, at offset `t % page_size`."""

    def __init__(self, page_size: int, keys: PageKeys | None = None) -> None:
        """An empty table; with `keys`, its full pages can be shared."""
        self.page_size = page_size
        self.length = 0
        self.keys = keys
        self.published = 0
        """First pages that were found in the prefix cache or offered to it; never written again."""
        self._pages = np.empty(8, np.int32)
        self._count = 0

    @property
    def pages(self) -> npt.NDArray[np.int32]:
        """[pages] int32, in order; a view that is valid until the table changes."""
        return self._pages[: self._count]

    @property
    def count(self) -> int:
        """Pages in the table."""
        return self._count

    def missing(self, length: int) -> int:
        """How many more pages `length` tokens need."""
        return max(0, -(-length // self.page_size) - self._count)

    def extend(self, pages: Sequence[int]) -> None:
        """Add pages at the end."""
        count = self._count + len(pages)
        if count > len(self._pages):
            self._pages = np.concatenate((self.pages, np.empty(count, np.int32)))
        self._pages[self._count : count] = pages
        self._count = count

    def shrink(self, count: int) -> list[int]:
        """Take pages off the end until `count` remain; those taken off, in order."""
        taken: list[int] = self._pages[count : self._count].tolist()
        self._count = min(count, self._count)
        return taken
