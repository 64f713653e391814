"""Page tables in one matrix against plain lists."""

from __future__ import annotations

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cleave.kvcache.table import PageTable, PageTables


class TableMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.tables = PageTables()
        self.open: list[tuple[PageTable, list[int]]] = []
        self.next = 0

    @rule(count=st.integers(1, 12))
    def open_some(self, count: int) -> None:
        self.open += [(PageTable(self.tables, 4), []) for _ in range(count)]

    @precondition(lambda self: self.open)
    @rule(data=st.data(), count=st.integers(0, 20))
    def extend(self, data: st.DataObject, count: int) -> None:
        table, expected = data.draw(st.sampled_from(self.open))
        pages = list(range(self.next, self.next + count))
        self.next += count
        table.extend(pages)
        expected += pages

    @precondition(lambda self: self.open)
    @rule(data=st.data(), count=st.integers(0, 20))
    def shrink(self, data: st.DataObject, count: int) -> None:
        table, expected = data.draw(st.sampled_from(self.open))
        assert table.shrink(count) == expected[count:]
        del expected[count:]

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.open) - 1))
        self.open.pop(index)[0].close()

    @invariant()
    def tables_are_what_they_should_be(self) -> None:
        for table, expected in self.open:
            assert table.pages.tolist() == expected
            assert table.count == len(expected)
            assert table.missing(4 * table.count + 5) == 2
        if self.open:
            width = max(table.count for table, _ in self.open)
            gathered = self.tables.gather([table.row for table, _ in self.open], width)
            assert gathered.flags.c_contiguous
            assert gathered.dtype == np.int32
            assert gathered.tolist() == [pages + [-1] * (width - len(pages)) for _, pages in self.open]


TableMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestTables = TableMachine.TestCase
