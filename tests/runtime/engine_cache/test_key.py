"""Keys of engines: what makes one, and how two of them differ."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cleave.runtime.engine_cache.key import EngineKey, shown

FIELDS: dict[str, Any] = {
    "graph": "a" * 64,
    "weights": "b" * 64,
    "kind": "onnxruntime",
    "kind_version": "1.30.0",
    "plugin_version": 1,
    "device": "8.6",
    "dtype": "float32",
    "profile": (("decode", 1, 8, 64), ("prefill", 1, 512, 2048)),
    "flags": ("a", "b"),
    "threads": 2,
    "shared": True,
}
values = st.recursive(
    st.text() | st.integers() | st.booleans(), lambda inner: st.lists(inner, max_size=3).map(tuple)
)


def test_the_digest_is_that_of_canonical_json() -> None:
    text = json.dumps(FIELDS, sort_keys=True, separators=(",", ":"))
    assert EngineKey(FIELDS).digest == hashlib.sha256(text.encode()).hexdigest()


def test_the_order_of_fields_does_not_matter() -> None:
    turned = dict(reversed(FIELDS.items()))
    assert EngineKey(turned) == EngineKey(FIELDS)
    assert len({EngineKey(turned), EngineKey(FIELDS)}) == 1


@given(st.dictionaries(st.text(max_size=8), values, max_size=4))
def test_a_key_comes_back_from_json(fields: dict[str, Any]) -> None:
    key = EngineKey(fields | {"kind": "x"})
    again = EngineKey.from_json(json.loads(json.dumps(dict(key.fields))))
    assert again == key
    assert again.differing(key) == ()


@pytest.mark.parametrize("name", FIELDS)
def test_one_field_that_changes_changes_the_digest_and_is_named_alone(name: str) -> None:
    value = FIELDS[name]
    new = not value if isinstance(value, bool) else value + 1 if isinstance(value, int) else "other"
    key, old = EngineKey(FIELDS | {name: new}), EngineKey(FIELDS)
    assert key.digest != old.digest
    assert key.differing(old) == (name,)
    label = key.kind if name == "kind_version" else name.replace("_", " ")
    assert key.differences(old) == f"{label} {shown(value)} -> {shown(new)}"


def test_differences_are_told_in_the_order_of_the_fields() -> None:
    new = EngineKey(FIELDS | {"kind_version": "1.31.1", "threads": 8})
    assert new.differences(EngineKey(FIELDS)) == "onnxruntime 1.30.0 -> 1.31.1; threads 2 -> 8"


def test_fields_that_one_side_lacks_are_told() -> None:
    more = EngineKey(FIELDS | {"compute_capability": "8.9"})
    assert more.differences(EngineKey(FIELDS)) == "compute capability none -> 8.9"
    assert EngineKey(FIELDS).differences(more) == "compute capability 8.9 -> none"


def test_one_is_not_true() -> None:
    assert EngineKey({"kind": "x", "n": 1}).differing(EngineKey({"kind": "x", "n": True})) == ("n",)


def test_what_is_shown_can_be_read() -> None:
    assert shown("c" * 64) == "c" * 12
    assert shown(FIELDS["profile"]) == "[[decode, 1, 8, 64], [prefill, 1, 512, 2048]]"
    assert (shown(True), shown(False), shown(()), shown("")) == ("on", "off", "none", "none")


@pytest.mark.parametrize("value", [1.5, None, b"x", ["list"], ("x", 1.5)])
def test_other_types_are_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="field n"):
        EngineKey({"kind": "x", "n": value})


def test_a_key_has_a_kind() -> None:
    with pytest.raises(ValueError, match="kind"):
        EngineKey({"graph": "x"})


def test_a_key_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        EngineKey(FIELDS).fields["kind"] = "other"  # type: ignore[index]
