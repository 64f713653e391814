"""The prefix cache: full pages that a later sequence with the same beginning need not compute."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from cleave.errors import AttentionError
from cleave.kvcache.keys import PageKeys
from cleave.kvcache.pool import PagePool


@dataclass(slots=True)
class PrefixStats:
    """What the prefix cache was asked for and what it had, in tokens, since the server began."""

    asked: int = 0
    found: int = 0
    evicted_pages: int = 0


class PrefixCache:
    """Pages by key. The cache is itself one user of every page that it can find.

    A page without any other user is idle: it stays findable until its place is needed. The idle page
    that was used least recently goes first; of one sequence, the last page before the first, since a
    page is only found through those before it.
    """

    def __init__(self, pool: PagePool) -> None:
        self._pool = pool
        self._pages: dict[bytes, int] = {}
        self._keys: dict[int, bytes] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()
        self.stats = PrefixStats()

    @property
    def idle_pages(self) -> int:
        """Pages that are kept and can be evicted."""
        return len(self._idle)

    @property
    def idle(self) -> list[int]:
        """The pages that are kept and can be evicted, the next to go first."""
        return list(self._idle)

    def find(self, keys: PageKeys) -> list[int]:
        """The pages that hold the beginning of a history, in order; as yet not taken.

        At least one token is left out, because the logits of the last one have to be computed.
        """
        pages: list[int] = []
        for index in range(min(len(keys), (keys.tokens - 1) // keys.page_size)):
            page = self._pages.get(keys[index])
            if page is None:
                break
            pages.append(page)
        return pages

    def idle_among(self, pages: Sequence[int]) -> int:
        """How many of these pages are idle."""
        return sum(page in self._idle for page in pages)

    def take(self, pages: Sequence[int]) -> None:
        """Add a user to pages that were found."""
        self._pool.retain(pages)
        for page in pages:
            self._idle.pop(page, None)

    def give_back(self, pages: Sequence[int]) -> None:
        """Take a user from the pages of one sequence, in order; what can be found becomes idle."""
        self._pool.release(pages)
        for page in reversed(pages):
            if page in self._keys and self._pool.users(page) == 1:
                self._idle[page] = None

    def publish(self, key: bytes, page: int) -> None:
        """Make a page findable; of two pages with one key the first stays."""
        if key in self._pages:
            return
        self._pool.retain([page])
        self._pages[key] = page
        self._keys[page] = key

    def is_findable(self, page: int) -> bool:
        """Whether the page has a key."""
        return page in self._keys

    def make_room(self, count: int) -> None:
        """Evict idle pages until `count` pages are free, or none is idle."""
        while self._pool.free_pages < count and self._idle:
            page, _ = self._idle.popitem(last=False)
            del self._pages[self._keys.pop(page)]
            self._pool.release([page])
            self.stats.evicted_pages += 1

    def clear(self) -> None:
        """Forget every page; those that sequences hold stay theirs."""
        pages = list(self._keys)
        self._pages.clear()
        self._keys.clear()
        self._idle.clear()
        self._pool.release(pages)

    def check(self) -> None:
        """Raise AttentionError unless keys and pages agree, and idle pages are those without other users."""
        if {page: key for key, page in self._pages.items()} != self._keys:
            raise AttentionError("the prefix cache is damaged: its keys and its pages do not agree")
        idle = {page for page in self._keys if self._pool.users(page) == 1}
        if idle != set(self._idle):
            wrong = sorted(idle ^ set(self._idle))
            raise AttentionError(f"the prefix cache is damaged: pages {wrong} are not rightly idle")
