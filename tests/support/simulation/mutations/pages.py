"""Faults in pages, page tables and the prefix cache."""

from __future__ import annotations

from typing import Any

import pytest

from cleave.kvcache import page_manager
from cleave.kvcache.keys import PageKeys, _digest
from cleave.kvcache.page_manager import PageManager
from cleave.kvcache.prefix import PrefixCache
from cleave.kvcache.server import AttentionServer
from cleave.kvcache.table import PageTable

Patch = pytest.MonkeyPatch


def a_page_leaks_when_a_sequence_ends(patch: Patch) -> None:
    give_back = PrefixCache.give_back
    patch.setattr(PrefixCache, "give_back", lambda self, pages: give_back(self, pages[: len(pages) - 1]))


def a_rollback_is_skipped(patch: Patch) -> None:
    patch.setattr(PageManager, "rollback", lambda self: self._end())


def a_rollback_forgets_one_of_two(patch: Patch) -> None:
    def rollback(self: PageManager) -> None:
        reserved = self._end()
        taken: list[int] = []
        for chunk, count in list(zip(reserved.chunks, reserved.pages_before, strict=True))[:1]:
            taken += self._tables[chunk.sequence].shrink(count)
        self._pool.release(taken)

    patch.setattr(PageManager, "rollback", rollback)


def a_failed_step_is_committed(patch: Patch) -> None:
    patch.setattr(PageManager, "rollback", PageManager.commit)


def a_page_that_is_still_written_is_shared(patch: Patch) -> None:
    def publish(self: PageManager, table: PageTable, keys: PageKeys, tokens: int) -> None:
        full = min(-(-tokens // self.page_size), len(keys))
        while table.published < full:
            self._prefix.publish(keys[table.published], int(table.pages[table.published]))
            table.published += 1

    patch.setattr(PageManager, "_publish", publish)


def a_page_can_be_found_before_its_step_is_committed(patch: Patch) -> None:
    reserve = PageManager.reserve

    def early(self: PageManager, step: Any) -> list[PageTable]:
        tables = reserve(self, step)
        for chunk, table in zip(step, tables, strict=True):
            if table.keys is not None:
                full = min((chunk.start + chunk.count) // self.page_size, len(table.keys))
                for page in range(table.published, full):
                    self._prefix.publish(table.keys[page], int(table.pages[page]))
        return tables

    patch.setattr(PageManager, "reserve", early)


def a_page_in_use_is_evicted(patch: Patch) -> None:
    patch.setattr(PrefixCache, "take", lambda self, pages: self._pool.retain(pages))


def the_page_used_last_is_evicted_first(patch: Patch) -> None:
    def make_room(self: PrefixCache, count: int) -> None:
        while self._pool.free_pages < count and self._idle:
            page, _ = self._idle.popitem(last=True)
            del self._pages[self._keys.pop(page)]
            self._pool.release([page])
            self.stats.evicted_pages += 1

    patch.setattr(PrefixCache, "make_room", make_room)


def a_key_forgets_what_came_before(patch: Patch) -> None:
    def extend(self: PageKeys, tokens: Any) -> None:
        self._rest.extend(tokens)
        while len(self._rest) >= self.page_size:
            self._keys.append(_digest(bytes(self._rest[: self.page_size])))
            del self._rest[: self.page_size]

    patch.setattr(PageKeys, "extend", extend)


def a_whole_prompt_is_taken_from_the_prefix_cache(patch: Patch) -> None:
    def find(self: PrefixCache, keys: PageKeys) -> list[int]:
        pages = []
        for index in range(len(keys)):
            if (page := self._pages.get(keys[index])) is None:
                break
            pages.append(page)
        return pages

    patch.setattr(PrefixCache, "find", find)


def the_page_count_is_off_by_one(patch: Patch) -> None:
    patch.setattr(page_manager, "pages_for", lambda tokens, size: tokens // size + 1)


def a_table_gets_a_page_too_few(patch: Patch) -> None:
    def missing(self: PageTable, length: int) -> int:
        return max(0, length // self.page_size - self.count)

    patch.setattr(PageTable, "missing", missing)


def positions_are_out_of_order(patch: Patch) -> None:
    build = AttentionServer._build

    def shifted(self: AttentionServer, step: Any, tables: Any) -> Any:
        plan = build(self, step, tables)
        if plan.tokens > 1:
            plan.positions[:2] = plan.positions[1::-1]
        return plan

    patch.setattr(AttentionServer, "_build", shifted)


def slots_are_out_of_order(patch: Patch) -> None:
    build = AttentionServer._build

    def shifted(self: AttentionServer, step: Any, tables: Any) -> Any:
        plan = build(self, step, tables)
        if plan.tokens > 1:
            plan.slots[:2] = plan.slots[1::-1]
        return plan

    patch.setattr(AttentionServer, "_build", shifted)
