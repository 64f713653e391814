"""The page table of one sequence: its pages in order, and how many tokens they hold."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cleave.kvcache.keys import PageKeys


class PageTables:
    """Room for the page tables of all open sequences: the rows of one matrix, so that those of a step
    are gathered at once. Entries that are not used are -1.
    """

    def __init__(self) -> None:
        self._matrix = np.full((8, 8), -1, np.int32)
        self._free = list(range(7, -1, -1))

    def open(self) -> int:
        """A row of which nothing is used."""
        if not self._free:
            rows, width = self._matrix.shape
            self._matrix = np.vstack((self._matrix, np.full((rows, width), -1, np.int32)))
            self._free = list(range(2 * rows - 1, rows - 1, -1))
        return self._free.pop()

    def close(self, row: int) -> None:
        """Give a row back."""
        self._matrix[row] = -1
        self._free.append(row)

    def row(self, row: int, count: int) -> npt.NDArray[np.int32]:
        """The first `count` entries of a row: a view that is valid until something is written."""
        return self._matrix[row, :count]

    def write(self, row: int, start: int, pages: Sequence[int]) -> None:
        """Set the entries from `start` on."""
        end = start + len(pages)
        rows, width = self._matrix.shape
        if end > width:
            wider = np.full((rows, max(end, 2 * width)), -1, np.int32)
            wider[:, :width] = self._matrix
            self._matrix = wider
        self._matrix[row, start:end] = pages

    def erase(self, row: int, start: int) -> list[int]:
        """Take the entries from `start` on out of use; those that were, in order."""
        rest = self._matrix[row, start:]
        taken: list[int] = rest[rest >= 0].tolist()
        rest[:] = -1
        return taken

    def gather(self, rows: Sequence[int], width: int) -> npt.NDArray[np.int32]:
        """[rows, width] int32: the first `width` entries of these rows."""
        return self._matrix[rows, :width]


class PageTable:
    """Token t of the sequence is in page `pages[t // page_size]`, at offset `t % page_size`."""

    __slots__ = ("_tables", "count", "keys", "length", "page_size", "published", "row")

    def __init__(self, tables: PageTables, page_size: int, keys: PageKeys | None = None) -> None:
        """An empty table in a row of `tables`; with `keys`, its full pages can be shared."""
        self.page_size = page_size
        self.length = 0
        """Tokens that are stored."""
        self.keys = keys
        self.published = 0
        """First pages that were found in the prefix cache or offered to it; never written again."""
        self.count = 0
        """Pages in the table."""
        self.row = tables.open()
        self._tables = tables

    @property
    def pages(self) -> npt.NDArray[np.int32]:
        """[count] int32, in order; a view that is valid until a table changes."""
        return self._tables.row(self.row, self.count)

    def missing(self, length: int) -> int:
        """How many more pages `length` tokens need."""
        return max(0, -(-length // self.page_size) - self.count)

    def extend(self, pages: Sequence[int]) -> None:
        """Add pages at the end."""
        self._tables.write(self.row, self.count, pages)
        self.count += len(pages)

    def shrink(self, count: int) -> list[int]:
        """Take pages off the end until `count` remain; those taken off, in order."""
        if count >= self.count:
            return []
        self.count = count
        return self._tables.erase(self.row, count)

    def close(self) -> None:
        """Give the row back; the table is not used afterwards."""
        self._tables.close(self.row)
