"""Any sequence of calls against a simple model of what the engine cache holds."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from engines import Builder, engine_key
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cleave.errors import CacheError
from cleave.runtime.engine_cache.cache import EngineCache
from cleave.runtime.engine_cache.engine import CachedEngine

SIZE = 1002
"""Bytes of an engine that `Builder` makes."""
NUMBERS = st.integers(1, 4)


class Interrupted(Exception):
    """Stands for whatever ends a build."""


class CacheMachine(RuleBasedStateMachine):
    """The model: numbers of engines in the order of their use, which are spoilt, which are open."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.builder = Builder()
        self.room = 3
        self.used: list[int] = []
        self.spoilt: set[int] = set()
        self.open: dict[int, list[CachedEngine]] = {}
        self.replaced: list[CachedEngine] = []
        self.clock = 1000

    @property
    def cache(self) -> EngineCache:
        return EngineCache(self.folder, max_bytes=self.room * SIZE)

    def path(self, number: int) -> Path:
        return self.folder / engine_key(threads=number).digest

    def note_use(self, number: int) -> None:
        """Times of use are set, so that no two are equal."""
        if number in self.used:
            self.used.remove(number)
        self.used.append(number)
        self.clock += 1
        os.utime(self.path(number) / "entry.json", (self.clock, self.clock))

    def evicted(self, room: int) -> None:
        for number in list(self.used):
            if len(self.used) > room and not self.open.get(number):
                self.used.remove(number)
                self.spoilt.discard(number)

    @rule(number=NUMBERS, keep_open=st.booleans())
    def get(self, number: int, keep_open: bool) -> None:
        is_there = number in self.used and number not in self.spoilt
        before = self.builder.calls
        engine = self.cache.get(engine_key(threads=number), self.builder)
        assert engine.was_built is not is_there
        assert self.builder.calls == before + (not is_there)
        assert engine.files["middle.plan"].read_bytes() == bytes(self.builder.size)
        if engine.was_built:  # whoever had the damaged one open has files that are in the cache no more
            self.replaced += self.open.pop(number, [])
        self.open.setdefault(number, []).append(engine)
        self.spoilt.discard(number)
        self.note_use(number)
        if not is_there:
            self.evicted(self.room)
        if not keep_open:
            self.open[number].pop().close()

    @rule(number=NUMBERS)
    def get_without_building(self, number: int) -> None:
        try:
            self.cache.get(engine_key(threads=number), self.builder, allow_build=False).close()
        except CacheError:
            assert number not in self.used or number in self.spoilt
        else:
            assert number in self.used
            assert number not in self.spoilt
            self.note_use(number)

    @rule(number=NUMBERS)
    def fail_to_build(self, number: int) -> None:
        def build(folder: Path) -> None:
            self.builder(folder)
            self.builder.calls -= 1
            raise Interrupted

        try:
            self.cache.get(engine_key(threads=number), build).close()
        except Interrupted:
            assert number not in self.used or number in self.spoilt
        else:
            self.note_use(number)

    @precondition(lambda self: any(self.open.values()))
    @rule(data=st.data())
    def close_one(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(key for key, engines in self.open.items() if engines)))
        self.open[number].pop().close()

    @precondition(lambda self: self.used)
    @rule(data=st.data(), way=st.sampled_from(["alter", "truncate", "remove"]))
    def damage(self, data: st.DataObject, way: str) -> None:
        number = data.draw(st.sampled_from(self.used))
        plan = self.path(number) / "middle.plan"
        if way == "remove":
            plan.unlink(missing_ok=True)
        elif plan.exists():
            plan.write_bytes(b"\1" * self.builder.size if way == "alter" else b"short")
        self.spoilt.add(number)

    @rule(number=NUMBERS)
    def remove(self, number: int) -> None:
        chosen = [entry for entry in self.cache.entries() if entry.folder == self.path(number)]
        assert bool(chosen) == (number in self.used)
        for removal in self.cache.remove(chosen):
            assert removal.is_gone is not bool(self.open.get(number))
            if removal.is_gone:
                self.used.remove(number)
                self.spoilt.discard(number)

    @rule(room=st.integers(0, 4))
    def gc(self, room: int) -> None:
        self.cache.gc(room * SIZE)
        self.evicted(room)

    @invariant()
    def the_cache_holds_what_the_model_says(self) -> None:
        in_order = [entry.key.fields["threads"] for entry in self.cache.entries()]
        assert in_order == self.used[::-1]
        for number in range(1, 5):
            why = self.cache.why(engine_key(threads=number))
            assert (why == "cached") == (number in self.used and number not in self.spoilt)
            assert ("damaged" in why) == (number in self.used and number in self.spoilt)

    @invariant()
    def nothing_half_made_is_left(self) -> None:
        names = {path.name for path in self.folder.iterdir()} - {".locks"}
        assert names == {self.path(number).name for number in self.used}

    def teardown(self) -> None:
        for engines in (*self.open.values(), self.replaced):
            for engine in engines:
                engine.close()
        shutil.rmtree(self.folder)


TestCache = CacheMachine.TestCase
TestCache.settings = settings(
    max_examples=50, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
