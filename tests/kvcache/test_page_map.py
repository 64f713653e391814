"""The page map against a count of its own, over random histories."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from cleave.kvcache.keys import PageKeys
from cleave.kvcache.page_manager import PageManager
from cleave.kvcache.page_map import CACHED, FREE, SHARED
from cleave.kvcache.step import Chunk

SIZE = 4
PAGES = 40

histories = st.lists(st.tuples(st.integers(0, 5), st.integers(1, 30), st.booleans()), min_size=1, max_size=25)


@given(histories)
@settings(max_examples=150, deadline=None)
def test_every_page_has_the_holder_that_the_tables_say(history: list[tuple[int, int, bool]]) -> None:
    pages = PageManager(PAGES, SIZE)
    for sequence, tokens, shares in history:
        if pages.is_open(sequence):
            pages.close(sequence)
            continue
        # All prompts begin alike, so that those that share find each other's pages.
        prompt = list(range(tokens))
        keys = PageKeys(SIZE) if shares else None
        if keys is not None:
            keys.extend(prompt)
        found = pages.open(sequence, keys)
        if pages.needed([Chunk(sequence, found, tokens - found)]) > pages.available_pages:
            pages.close(sequence)
            continue
        pages.reserve([Chunk(sequence, found, tokens - found)])
        pages.commit()
        pages.check()
        users: dict[int, list[int]] = {page: [] for page in range(PAGES)}
        for one in range(6):
            if pages.is_open(one):
                for page in pages.table(one).pages.tolist():
                    users[page].append(one)
        holders = pages.map().holders.tolist()
        for page, holder in enumerate(holders):
            if len(users[page]) > 1:
                assert holder == SHARED
            elif users[page]:
                assert holder == users[page][0]
            else:
                assert holder in (FREE, CACHED)
        counted = Counter(holders)
        assert counted[FREE] == pages.free_pages
        assert counted[CACHED] == pages.cached_pages
