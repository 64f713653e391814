"""The page pool against a plain count of users."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cleave.errors import AttentionError, OutOfPages
from cleave.kvcache.pool import PagePool

SIZE = 12


class PoolMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(SIZE)
        self.users: dict[int, int] = {}

    @rule(count=st.integers(0, SIZE + 1))
    def allocate(self, count: int) -> None:
        free = SIZE - len(self.users)
        if count > free:
            with pytest.raises(OutOfPages, match=f"{count} more .* {free} of {SIZE} are free"):
                self.pool.allocate(count)
            return
        pages = self.pool.allocate(count)
        assert len(set(pages)) == count
        assert not set(pages) & set(self.users)
        self.users.update(dict.fromkeys(pages, 1))

    @rule(pages=st.lists(st.integers(-1, SIZE), max_size=4))
    def retain(self, pages: list[int]) -> None:
        if not set(pages) <= set(self.users):
            with pytest.raises(AttentionError, match="not in use"):
                self.pool.retain(pages)
            return
        self.pool.retain(pages)
        for page in pages:
            self.users[page] += 1

    @rule(pages=st.lists(st.integers(-1, SIZE), max_size=4))
    def release(self, pages: list[int]) -> None:
        if any(pages.count(page) > self.users.get(page, 0) for page in pages):
            with pytest.raises(AttentionError, match="released"):
                self.pool.release(pages)
            return
        self.pool.release(pages)
        for page in pages:
            self.users[page] -= 1
            if not self.users[page]:
                del self.users[page]

    @invariant()
    def counts_agree(self) -> None:
        self.pool.check()
        assert self.pool.free_pages == SIZE - len(self.users)
        assert all(self.pool.users(page) == self.users.get(page, 0) for page in range(SIZE))


PoolMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestPool = PoolMachine.TestCase


def test_a_pool_without_pages_is_refused() -> None:
    with pytest.raises(AttentionError, match="num_pages is 0"):
        PagePool(0)


def test_the_check_finds_a_page_that_is_free_twice() -> None:
    pool = PagePool(3)
    pool._free.append(pool._free[0])
    with pytest.raises(AttentionError, match="free twice"):
        pool.check()


def test_the_check_finds_a_page_that_is_lost() -> None:
    pool = PagePool(3)
    pool._free.pop()
    with pytest.raises(AttentionError, match="has 0 users and is not free"):
        pool.check()
