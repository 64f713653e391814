"""The page pool: which pages are free, and how many users each of the others has."""

from __future__ import annotations

from collections.abc import Iterable

from cleave.errors import AttentionError, OutOfPages


class PagePool:
    """A fixed number of pages, handed out by index and counted by use.

    A page that was allocated has one user; `retain` adds one, `release` takes one away, and a page
    without users is free again. The pool knows nothing of what the pages hold.
    """

    def __init__(self, num_pages: int) -> None:
        if num_pages <= 0:
            raise AttentionError(f"num_pages is {num_pages}; the KV cache needs at least one page")
        self._users = [0] * num_pages
        # Taken from the end, so page 0 goes first and pages just released are used again while warm.
        self._free = list(range(num_pages - 1, -1, -1))

    @property
    def num_pages(self) -> int:
        """Pages in all."""
        return len(self._users)

    @property
    def free_pages(self) -> int:
        """Pages that nobody uses."""
        return len(self._free)

    def users(self, page: int) -> int:
        """How many use this page."""
        return self._users[page]

    def allocate(self, count: int) -> list[int]:
        """Take `count` free pages, each with one user.

        Raises OutOfPages, with nothing taken, where fewer are free.
        """
        if count < 0:
            raise AttentionError(f"cannot allocate {count} pages; the count must not be negative")
        if count > len(self._free):
            raise OutOfPages(
                f"{count} more KV pages are needed and {len(self._free)} of {self.num_pages} are free; "
                "end or preempt a sequence, or make the cache larger (num_pages)"
            )
        if count == 0:
            return []
        pages = self._free[-count:][::-1]
        del self._free[-count:]
        for page in pages:
            self._users[page] = 1
        return pages

    def retain(self, pages: Iterable[int]) -> None:
        """Add a user to each page. Raises AttentionError, with nothing changed, if one is free."""
        wanted = list(pages)
        for page in wanted:
            if not self._in_use(page):
                raise AttentionError(f"page {page} is not in use; only pages in use can be shared")
        for page in wanted:
            self._users[page] += 1

    def release(self, pages: Iterable[int]) -> None:
        """Take a user from each page; those without users become free, the first given to be used first.

        Raises AttentionError, with nothing changed, where a page has fewer users than are taken.
        """
        given = list(pages)
        taken: dict[int, int] = {}
        for page in given:
            taken[page] = taken.get(page, 0) + 1
        for page, times in taken.items():
            if not self._in_use(page) or self._users[page] < times:
                users = self._users[page] if 0 <= page < self.num_pages else 0
                raise AttentionError(f"page {page} is released {times} times and has {users} users")
        for page in reversed(given):
            self._users[page] -= 1
            if self._users[page] == 0:
                self._free.append(page)

    def check(self) -> None:
        """Raise AttentionError if a page is both free and in use, free twice, or neither."""
        free = set(self._free)
        if len(free) != len(self._free):
            raise AttentionError("the page pool is damaged: a page is free twice")
        for page, users in enumerate(self._users):
            if users < 0 or (users == 0) != (page in free):
                state = "free" if page in free else "not free"
                raise AttentionError(
                    f"the page pool is damaged: page {page} has {users} users and is {state}"
                )

    def _in_use(self, page: int) -> bool:
        return 0 <= page < self.num_pages and self._users[page] > 0
