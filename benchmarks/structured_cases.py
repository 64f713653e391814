"""Schemas as people write them, each with a document; and features of JSON Schema with examples."""

from __future__ import annotations

from typing import Any

_ADDRESS = {
    "type": "object",
    "properties": {
        "street": {"type": "string"},
        "city": {"type": "string"},
        "zip": {"type": "string", "pattern": "^[0-9]{5}$"},
        "country": {"enum": ["DE", "FR", "US", "JP"]},
    },
    "required": ["street", "city", "zip", "country"],
    "additionalProperties": False,
}
_ADDRESS_VALUE = {"street": "12 Long Road", "city": "Springfield", "zip": "12345", "country": "US"}
_SETTINGS = [f"{area}_{what}" for area in ("log", "cache", "http", "auth", "db", "queue") for what in
             ("enabled", "level", "path", "timeout", "retries", "size", "host", "port")]  # fmt: skip

SCHEMAS: dict[str, tuple[Any, Any]] = {
    "function call": (
        {
            "type": "object",
            "properties": {
                "name": {"const": "get_weather"},
                "arguments": {
                    "type": "object",
                    "properties": {"city": {"type": "string"}, "unit": {"enum": ["celsius", "fahrenheit"]}},
                    "required": ["city", "unit"],
                    "additionalProperties": False,
                },
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        },
        {"name": "get_weather", "arguments": {"city": "San Francisco", "unit": "celsius"}},
    ),
    "person": (
        {
            "type": "object",
            "properties": {
                "name": {"type": "string", "minLength": 1, "maxLength": 80},
                "age": {"type": "integer", "minimum": 0, "maximum": 150},
                "email": {"type": "string", "format": "email"},
                "address": _ADDRESS,
                "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 8},
            },
            "required": ["name", "age", "email", "address", "tags"],
            "additionalProperties": False,
        },
        {
            "name": "Ada Lovelace",
            "age": 36,
            "email": "ada@example.com",
            "address": _ADDRESS_VALUE,
            "tags": ["mathematics", "engines", "poetry"],
        },
    ),
    "invoice": (
        {
            "type": "object",
            "properties": {
                "id": {"type": "string", "format": "uuid"},
                "issued": {"type": "string", "format": "date"},
                "lines": {
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "type": "object",
                        "properties": {
                            "text": {"type": "string"},
                            "amount": {"type": "number", "minimum": 0},
                            "quantity": {"type": "integer", "minimum": 1, "maximum": 1000},
                        },
                        "required": ["text", "amount", "quantity"],
                        "additionalProperties": False,
                    },
                },
                "seller": _ADDRESS,
                "buyer": {"anyOf": [_ADDRESS, {"type": "null"}]},
            },
            "required": ["id", "issued", "lines", "seller", "buyer"],
            "additionalProperties": False,
        },
        {
            "id": "123e4567-e89b-12d3-a456-426614174000",
            "issued": "2026-11-21",
            "lines": [{"text": f"Item number {n}", "amount": 12.5, "quantity": n + 1} for n in range(6)],
            "seller": _ADDRESS_VALUE,
            "buyer": None,
        },
    ),
    "union of events": (
        {
            "type": "array",
            "items": {
                "anyOf": [
                    {
                        "type": "object",
                        "properties": {
                            "kind": {"const": kind},
                            field: {"type": "string"},
                            "at": {"type": "integer"},
                        },
                        "required": ["kind", field, "at"],
                        "additionalProperties": False,
                    }
                    for kind, field in (
                        ("click", "target"),
                        ("scroll", "direction"),
                        ("key", "name"),
                        ("load", "url"),
                    )
                ]
            },
        },
        [
            {"kind": "click", "target": "#submit button", "at": 17},
            {"kind": "load", "url": "https://example.com/a?b=c", "at": 18},
            {"kind": "key", "name": "Enter", "at": 19},
        ],
    ),
    "recursive tree": (
        {
            "$ref": "#/$defs/node",
            "$defs": {
                "node": {
                    "type": "object",
                    "properties": {
                        "value": {"type": "string"},
                        "children": {"type": "array", "items": {"$ref": "#/$defs/node"}},
                    },
                    "required": ["value", "children"],
                    "additionalProperties": False,
                }
            },
        },
        {
            "value": "root",
            "children": [
                {"value": f"branch {n}", "children": [{"value": "leaf", "children": []}] * 2}
                for n in range(3)
            ],
        },
    ),
    "48 optional settings": (
        {
            "type": "object",
            "properties": {
                name: {"type": "boolean"} if "enabled" in name else {"type": ["string", "integer"]}
                for name in _SETTINGS
            },
            "additionalProperties": False,
        },
        {name: True if "enabled" in name else "some value" for name in _SETTINGS[::3]},
    ),
    "enum of 2000": (
        {
            "type": "object",
            "properties": {"sku": {"enum": [f"SKU-{n * 7919 % 100003:05d}-{n}" for n in range(2000)]}},
            "required": ["sku"],
            "additionalProperties": False,
        },
        {"sku": f"SKU-{1234 * 7919 % 100003:05d}-1234"},
    ),
    "map of records": (
        {
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "properties": {"score": {"type": "number"}, "note": {"type": "string", "maxLength": 200}},
                "required": ["score", "note"],
                "additionalProperties": False,
            },
        },
        {f"entry {n}": {"score": n / 8, "note": "The quick brown fox jumps over it."} for n in range(5)},
    ),
    "any JSON object": (
        {"type": "object"},
        {
            "title": "Anything at all",
            "list": [1, 2.5, None, True, {"deep": ["er"]}],
            "text": "naïve 日本語 😀",
        },
    ),
}
"""Name -> schema, document."""

_ITEM = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
FEATURES: dict[str, tuple[Any, list[str], list[str]]] = {
    "minLength, maxLength": ({"type": "string", "minLength": 2, "maxLength": 3}, ['"ab"'], ['"a"', '"abcd"']),
    "pattern": ({"type": "string", "pattern": "^a+b$"}, ['"aab"'], ['"ac"']),
    "pattern, not anchored": ({"type": "string", "pattern": "b+"}, ['"abba"'], ['"aa"']),
    "format date": ({"type": "string", "format": "date"}, ['"2026-11-21"'], ['"2026-13-01"', '"x"']),
    "format ipv4": ({"type": "string", "format": "ipv4"}, ['"127.0.0.1"'], ['"300.0.0.1"']),
    "format unknown": ({"type": "string", "format": "iban"}, [], ['"x"']),
    "minimum, maximum": ({"type": "integer", "minimum": -3, "maximum": 12}, ["-3", "12"], ["-4", "13"]),
    "number ranges": ({"type": "number", "exclusiveMinimum": 0, "maximum": 1.5}, ["0.5"], ["0", "1.6"]),
    "multipleOf": ({"type": "integer", "multipleOf": 5}, ["15"], ["16"]),
    "minItems, maxItems": ({"type": "array", "minItems": 1, "maxItems": 2}, ["[1]"], ["[]", "[1,2,3]"]),
    "prefixItems": (
        {"prefixItems": [{"type": "integer"}], "items": False, "type": "array"}, ["[1]"], ['["a"]'],
    ),
    "uniqueItems": ({"type": "array", "uniqueItems": True}, ["[1,2]"], ["[1,1]"]),
    "contains": ({"type": "array", "contains": {"const": 1}}, ["[1]"], ["[2]"]),
    "required": (_ITEM, ['{"a":1}'], ["{}"]),
    "additionalProperties schema": (
        {"type": "object", "additionalProperties": {"type": "integer"}}, ['{"z":1}'], ['{"z":"a"}'],
    ),
    "patternProperties": (
        {"type": "object", "patternProperties": {"^n_": {"type": "integer"}}, "additionalProperties": False},
        ['{"n_a":1}'], ['{"n_a":"b"}', '{"m":1}'],
    ),
    "propertyNames": (
        {"type": "object", "propertyNames": {"pattern": "^a+$"}}, ['{"aa":1}'], ['{"b":1}'],
    ),
    "minProperties, maxProperties": (
        {"type": "object", "minProperties": 1, "maxProperties": 2},
        ['{"a":1}'], ["{}", '{"a":1,"b":2,"c":3}'],
    ),
    "dependentRequired": (
        {"type": "object", "properties": {"a": {}, "b": {}}, "dependentRequired": {"a": ["b"]}},
        ['{"a":1,"b":2}'], ['{"a":1}'],
    ),
    "const, enum": ({"enum": [1, "a", None]}, ["1", '"a"', "null"], ["2"]),
    "anyOf": ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, ["1", "null"], ['"a"']),
    "oneOf, disjoint": ({"oneOf": [{"type": "integer"}, {"type": "string"}]}, ["1", '"a"'], ["null"]),
    "oneOf, overlapping": (
        {"oneOf": [{"type": "integer", "minimum": 0}, {"type": "integer", "maximum": 5}]}, ["-1", "6"], ["3"],
    ),
    "allOf": (
        {"allOf": [_ITEM, {"type": "object", "properties": {"b": {"type": "null"}}, "required": ["b"]}]},
        ['{"a":1,"b":null}'], ['{"a":1}'],
    ),
    "allOf of ranges": (
        {"type": "integer", "allOf": [{"minimum": 3}, {"maximum": 5}]}, ["4"], ["2", "6"],
    ),
    "not": ({"not": {"type": "integer"}}, ['"a"'], ["1"]),
    "if, then, else": (
        {"type": "integer", "if": {"minimum": 5}, "then": {"multipleOf": 5}, "else": {"minimum": 0}},
        ["3", "10"], ["6", "-1"],
    ),
    "$ref beside keywords": (
        {"$ref": "#/$defs/a", "maxLength": 2, "$defs": {"a": {"type": "string", "minLength": 1}}},
        ['"ab"'], ['""', '"abc"'],
    ),
    "unevaluatedProperties": (
        {"type": "object", "allOf": [{"properties": {"a": {}}}], "unevaluatedProperties": False},
        ['{"a":1}'], ['{"b":1}'],
    ),
}  # fmt: skip
"""Name -> schema, texts that it allows, texts that it does not."""
