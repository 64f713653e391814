"""Every engine kind is whole: what the registry names is there, and keeps the protocol it is used by."""

from __future__ import annotations

import importlib

import pytest

from cleave.runtime.engines.builder import EngineBuilder
from cleave.runtime.engines.kinds import KINDS

MEMBERS = {name for name in (*EngineBuilder.__annotations__, *vars(EngineBuilder)) if name[0] != "_"}
BUILT = [kind for kind, entry in KINDS.items() if entry.builder is not None]


@pytest.mark.parametrize("kind", BUILT)
def test_a_builder_has_all_that_the_cache_asks_for(kind: str) -> None:
    module, _, name = str(KINDS[kind].builder).partition(":")
    builder = getattr(importlib.import_module(module), name)
    assert {"is_optional", "serves", "build", "table"} < MEMBERS
    # Keys are made with the builder, for one artifact.
    assert not [member for member in MEMBERS - {"key"} if not hasattr(builder, member)]
