"""Random JSON schemas of the kind that people write, from a seed."""

from __future__ import annotations

from random import Random
from typing import Any

_NAMES = ("name", "age", "city", "päth", "a b", "x", "tags", "note\n", "😀", 'quo"te', "type")
_PATTERNS = ("^[a-z]{2,5}$", "^(ab|cd)+$", "[0-9a-z]{2}", r"^\d{2}-\d{2}$", "^[A-Z][a-z]*$", "^é?x{0,3}$")
_FORMATS = ("uuid", "ipv4", "date-time", "time", "duration")
_VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -7,
    2.5,
    "",
    "two words",
    'a "quote"',
    "日本",
    [],
    {},
    [1, "x"],
    {"k": 1},
)


def random_schema(seed: int) -> dict[str, Any]:
    """A schema that some document satisfies; recursive ones always have a way out."""
    generator = Random(seed)
    schema = _object(generator, 3) if generator.random() < 0.6 else _schema(generator, 3)
    if "$ref" in str(schema):
        schema["$defs"] = {
            "leaf": _leaf(generator),
            "tree": {
                "type": "object",
                "properties": {
                    "value": _leaf(generator),
                    "children": {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 2},
                },
                "required": ["value"],
                "additionalProperties": False,
            },
        }
    return schema


def _schema(generator: Random, depth: int) -> dict[str, Any]:
    if depth == 0:
        return _leaf(generator)
    kinds = (_leaf, _object, _array, _any_of, _one_of, _all_of, _reference)
    kind = generator.choices(kinds, (4, 3, 2, 1, 1, 1, 1))[0]
    return _leaf(generator) if kind is _leaf else kind(generator, depth - 1)


def _leaf(generator: Random) -> dict[str, Any]:
    return generator.choice((_integer, _number, _string, _literal, _plain))(generator)


def _plain(generator: Random) -> dict[str, Any]:
    return {"type": generator.choice(("null", "boolean", "string", ["integer", "null"]))}


def _integer(generator: Random) -> dict[str, Any]:
    low = generator.randint(-1000, 1000)
    schema: dict[str, Any] = {"type": "integer"}
    if generator.random() < 0.6:
        schema |= {"minimum": low, generator.choice(("maximum", "exclusiveMaximum")): low + 50}
    if generator.random() < 0.3:
        schema["multipleOf"] = generator.choice((2, 5, 7))
    return schema


def _number(generator: Random) -> dict[str, Any]:
    low = generator.randint(-1000, 1000) / 8
    schema: dict[str, Any] = {"type": "number"}
    return schema | ({"minimum": low, "maximum": low + 10.5} if generator.random() < 0.6 else {})


def _string(generator: Random) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    what = generator.randrange(4)
    if what == 0:
        low = generator.randint(0, 5)
        schema |= {"minLength": low, "maxLength": low + generator.randint(0, 6)}
    elif what == 1:
        schema["pattern"] = generator.choice(_PATTERNS)
    elif what == 2:
        schema["format"] = generator.choice(_FORMATS)
    return schema


def _literal(generator: Random) -> dict[str, Any]:
    if generator.random() < 0.4:
        return {"const": generator.choice(_VALUES)}
    return {"enum": generator.sample(_VALUES, generator.randint(1, 4))}


def _object(generator: Random, depth: int) -> dict[str, Any]:
    names = generator.sample(_NAMES, generator.randint(0, 4))
    schema: dict[str, Any] = {
        "type": "object",
        "title": "Some object",
        "properties": {name: _schema(generator, depth) for name in names},
        "required": [name for name in names if generator.random() < 0.5],
    }
    more = generator.randrange(4)
    if more == 0:
        schema["additionalProperties"] = _leaf(generator)
    elif more == 1:
        schema |= {"patternProperties": {"^p_[a-z]+$": _leaf(generator)}, "additionalProperties": False}
    else:
        schema["additionalProperties"] = False
    return schema


def _array(generator: Random, depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "array", "items": _schema(generator, depth)}
    if generator.random() < 0.3:
        schema["prefixItems"] = [_leaf(generator), _leaf(generator)]
    low = generator.randint(0, 2)
    return schema | ({"minItems": low, "maxItems": low + 3} if generator.random() < 0.6 else {})


def _any_of(generator: Random, depth: int) -> dict[str, Any]:
    return {"anyOf": [_schema(generator, depth) for _ in range(generator.randint(1, 3))]}


def _one_of(generator: Random, depth: int) -> dict[str, Any]:
    """Told apart by a property, as a discriminated union is."""
    options = [
        {
            "type": "object",
            "properties": {"kind": {"const": f"k{index}"}, "value": _schema(generator, depth)},
            "required": ["kind", "value"],
            "additionalProperties": False,
        }
        for index in range(generator.randint(1, 3))
    ]
    return {"oneOf": options}


def _all_of(generator: Random, depth: int) -> dict[str, Any]:
    first, second = generator.sample(_NAMES, 2)
    parts = [
        {"type": "object", "properties": {name: _schema(generator, depth)}, "required": [name]}
        for name in (first, second)
    ]
    return {"allOf": parts}


def _reference(generator: Random, depth: int) -> dict[str, Any]:
    return {"$ref": generator.choice(("#/$defs/tree", "#/$defs/leaf"))}
