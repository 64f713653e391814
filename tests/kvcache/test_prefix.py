"""The prefix cache: what is found, what it costs, and what goes when its place is needed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cleave.errors import AttentionError, OutOfPages
from cleave.kvcache.keys import PageKeys
from cleave.kvcache.page_manager import PageManager
from cleave.kvcache.step import Chunk

PAGE = 4


def keys_of(tokens: list[int], adapter: str | None = None, page_size: int = PAGE) -> PageKeys:
    keys = PageKeys(page_size, adapter)
    keys.extend(tokens)
    return keys


def fill(pages: PageManager, sequence: int, tokens: list[int], adapter: str | None = None) -> int:
    """Open a sequence and compute what is not found; gives back how much was found."""
    found = pages.open(sequence, keys_of(tokens, adapter))
    pages.reserve([Chunk(sequence, found, len(tokens) - found)])
    pages.commit()
    pages.check()
    return found


def table(pages: PageManager, sequence: int) -> list[int]:
    held: list[int] = pages.table(sequence).pages.tolist()
    return held


@given(st.lists(st.integers(0, 2**40), max_size=40), st.data())
def test_keys_do_not_depend_on_how_the_tokens_came(tokens: list[int], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(tokens)))
    keys = PageKeys(PAGE)
    keys.extend(tokens[:cut])
    keys.extend(tokens[cut:])
    whole = keys_of(tokens)
    assert [keys[page] for page in range(len(keys))] == [whole[page] for page in range(len(whole))]
    assert len(keys) == len(tokens) // PAGE
    assert keys.tokens == len(tokens)


def test_a_key_stands_for_its_tokens_those_before_the_page_size_and_the_adapter() -> None:
    tokens = list(range(8))
    variants = [
        keys_of(tokens),
        keys_of([1, *tokens[1:]]),
        keys_of(tokens[4:] + tokens[4:]),
        keys_of(tokens, "adapter"),
        keys_of(tokens, ""),
        keys_of(tokens, page_size=8),
    ]
    assert len({keys[len(keys) - 1] for keys in variants}) == len(variants)
    assert all(len(keys[0]) == 32 for keys in variants)


def test_a_second_sequence_shares_the_full_pages_of_the_first() -> None:
    pages = PageManager(10, PAGE)
    assert fill(pages, 1, [*range(10)]) == 0
    assert fill(pages, 2, [*range(10), 11]) == 8
    assert table(pages, 2)[:2] == table(pages, 1)[:2]
    assert table(pages, 2)[2] != table(pages, 1)[2]
    assert pages.free_pages == 6
    assert (pages.stats.asked, pages.stats.found) == (21, 8)


def test_at_least_one_token_is_always_computed() -> None:
    pages = PageManager(10, PAGE)
    fill(pages, 1, [*range(8)])
    assert fill(pages, 2, [*range(8)]) == 4
    assert fill(pages, 3, [*range(9)]) == 8


def test_adapters_do_not_share() -> None:
    pages = PageManager(10, PAGE)
    fill(pages, 1, [*range(9)], "one")
    assert fill(pages, 2, [*range(9)], "two") == 0
    assert fill(pages, 3, [*range(9)], "one") == 8


def test_pages_can_be_found_only_after_their_step_is_committed() -> None:
    pages = PageManager(10, PAGE)
    pages.open(1, keys_of([*range(9)]))
    pages.reserve([Chunk(1, 0, 9)])
    assert pages.open(2, keys_of([*range(9)])) == 0
    pages.rollback()
    assert pages.open(3, keys_of([*range(9)])) == 0
    pages.reserve([Chunk(1, 0, 9)])
    pages.commit()
    assert pages.open(4, keys_of([*range(9)])) == 8


def test_pages_outlive_their_sequence_until_their_place_is_needed() -> None:
    pages = PageManager(4, PAGE)
    fill(pages, 1, [*range(9)])
    pages.close(1)
    assert (pages.free_pages, pages.cached_pages, pages.available_pages) == (2, 2, 4)
    assert fill(pages, 2, [*range(9)]) == 8
    pages.close(2)
    fill(pages, 3, [50] * 16)
    assert (pages.free_pages, pages.cached_pages) == (0, 0)
    assert pages.stats.evicted_pages == 2
    pages.close(3)
    assert fill(pages, 4, [*range(9)]) == 0


def test_the_least_recently_used_is_evicted_first_and_of_one_sequence_its_last_page() -> None:
    pages = PageManager(8, PAGE)
    for sequence, first in ((1, 100), (2, 200)):
        fill(pages, sequence, [*range(first, first + 9)])
    pages.close(1)
    pages.close(2)
    pages.open(3, keys_of([*range(100, 109)]))
    pages.close(3)
    assert (pages.free_pages, pages.cached_pages) == (4, 4)
    fill(pages, 4, [0] * 20)
    assert pages.stats.evicted_pages == 1
    assert pages.open(5, keys_of([*range(200, 209)])) == 4
    assert pages.open(6, keys_of([*range(100, 109)])) == 8


def test_a_page_in_use_is_never_evicted() -> None:
    pages = PageManager(4, PAGE)
    fill(pages, 1, [*range(9)])
    pages.open(2)
    with pytest.raises(OutOfPages, match="2 more KV pages are needed and 1 of 4 are free"):
        pages.reserve([Chunk(2, 0, 8)])
    assert pages.open(3, keys_of([*range(9)])) == 8


def test_the_cost_of_a_sequence_is_what_it_takes_of_the_available_pages() -> None:
    pages = PageManager(10, PAGE)
    fill(pages, 1, [*range(9)])
    for close in (False, True):
        if close:
            pages.close(1)
        keys = keys_of([*range(13)])
        before, cost = pages.available_pages, pages.cost(13, keys)
        found = pages.open(2, keys)
        pages.reserve([Chunk(2, found, 13 - found)])
        pages.commit()
        assert before - pages.available_pages == cost
        pages.close(2)


def test_two_that_compute_the_same_page_at_once_both_keep_theirs() -> None:
    pages = PageManager(10, PAGE)
    for sequence in (1, 2):
        pages.open(sequence, keys_of([*range(9)]))
    pages.reserve([Chunk(1, 0, 9), Chunk(2, 0, 9)])
    pages.commit()
    pages.check()
    assert not set(table(pages, 1)) & set(table(pages, 2))
    pages.close(1)
    pages.close(2)
    assert (pages.free_pages, pages.cached_pages) == (8, 2)


def test_a_sequence_without_keys_shares_nothing() -> None:
    pages = PageManager(10, PAGE)
    pages.open(1)
    pages.reserve([Chunk(1, 0, 9)])
    pages.commit()
    assert pages.open(2, keys_of([*range(9)])) == 0
    pages.close(1)
    assert pages.cached_pages == 0


def test_clearing_frees_what_no_sequence_holds() -> None:
    pages = PageManager(10, PAGE)
    fill(pages, 1, [*range(9)])
    fill(pages, 2, [*range(100, 109)])
    pages.close(2)
    pages.clear_prefix_cache()
    pages.check()
    assert (pages.free_pages, pages.cached_pages) == (7, 0)
    assert pages.open(3, keys_of([*range(9)])) == 0


def test_the_check_finds_a_page_that_is_written_and_shared() -> None:
    pages = PageManager(10, PAGE)
    fill(pages, 1, [*range(9)])
    pages._prefix.publish(b"key", table(pages, 1)[2])
    with pytest.raises(AttentionError, match="is written by sequence 1 and has other users"):
        pages.check()
