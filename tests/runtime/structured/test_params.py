"""What is refused, and what the message says; and that nothing is ignored in silence."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from vocabularies import DEMO_EOS, demo

from cleave.errors import MissingPackage, RequestError
from cleave.runtime.structured.compiler import GrammarCompiler
from cleave.runtime.structured.params import StructuredOutput

DEEP: dict[str, Any] = {}
for _ in range(200):
    DEEP = {"items": DEEP}


@pytest.fixture(scope="module")
def compiler() -> Iterator[GrammarCompiler]:
    made = GrammarCompiler(demo(), DEMO_EOS)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "given nothing; give exactly one of json_schema, json_object, regex, choice, grammar"),
        ({"regex": "a", "choice": ["a"]}, "given regex and choice; give exactly one"),
        ({"json_schema": False, "json_object": True}, "given json_schema and json_object"),
        ({"json_object": 1}, "json_object is 1; it must be True or False"),
        ({"regex": "a", "disable_any_whitespace": True}, "disable_any_whitespace is for json_schema and"),
        ({"json_object": True, "disable_any_whitespace": None}, "disable_any_whitespace is None"),
        ({"regex": ""}, "regex is empty"),
        ({"regex": 5}, "regex is of int; it must be text"),
        ({"regex": "\ud800"}, "regex has a character that UTF-8 cannot encode"),
        ({"regex": "a" * 70_000}, "regex has 70000 bytes; at most 65536 are allowed"),
        ({"grammar": "é" * 40_000}, "grammar has 80000 bytes; at most 65536"),
        ({"grammar": ""}, "grammar is empty"),
        ({"choice": []}, "choice is empty; give at least one"),
        ({"choice": "yes"}, "choice is 'yes'; it must be a list of strings"),
        ({"choice": {"yes", "no"}}, "it must be a list of strings"),
        ({"choice": ["yes", 1]}, "choice has 1; it must be a list of strings"),
        ({"choice": ["x" * 300_000]}, "choice has 300000 bytes; at most 262144"),
        ({"json_schema": 5}, "json_schema is of int; it must be a dict, a bool or JSON text"),
        ({"json_schema": "{"}, "json_schema is not JSON"),
        ({"json_schema": ""}, "json_schema is empty"),
        ({"json_schema": '{"a": 1, "a": 2}'}, "the key 'a' is there twice"),
        ({"json_schema": '{"minimum": NaN}'}, "NaN is no JSON value"),
        ({"json_schema": {"minimum": float("inf")}}, "cannot be written as JSON"),
        ({"json_schema": {"enum": {1, 2}}}, "cannot be written as JSON"),
        ({"json_schema": "[1]"}, "the JSON schema at # is [1]; it must be an object or a bool"),
        ({"json_schema": {"items": 5}}, "at #/items is 5; it must be an object or a bool"),
        ({"json_schema": {"properties": []}}, "properties at # of the JSON schema must be an object"),
        ({"json_schema": {"anyOf": {}}}, "anyOf at # of the JSON schema must be a list"),
        ({"json_schema": DEEP}, "nested deeper than 100"),
        ({"json_schema": "[" * 100_000}, "json_schema is n"),
        ({"json_schema": {"enum": ["x" * 300_000]}}, "json_schema has 300014 bytes; at most 262144"),
        ({"json_schema": {"properties": {"a/b": {"not": {}}}}}, "the keyword not at #/properties/a~1b of"),
        ({"json_schema": {"x-guidance": {"lenient": True}}}, "the keyword x-guidance at #"),
        ({"json_schema": {"$ref": "https://example.com/a.json"}}, "$ref 'https://example.com/a.json' at #"),
        ({"json_schema": {"$ref": "#/$defs/b", "$defs": {"a": {}}}}, "$ref '#/$defs/b' at # of"),
        ({"json_schema": {"$ref": "#/x/y", "x": {"y": {"not": {}}}}}, "$ref '#/x/y' at #"),
        ({"json_schema": {"$ref": "#here"}}, "$ref '#here' at #"),
        ({"json_schema": {"items": {"$id": "other"}}}, "$id at #/items"),
        ({"json_schema": {"type": "object", "minProperties": 2}}, "minProperties 2 at #"),
        ({"json_schema": {"required": "a"}}, "required at # of the JSON schema must be a list"),
        ({"json_schema": {"properties": {f"p{i}": {} for i in range(501)}}}, "501 optional properties at #"),
        ({"json_schema": {"multipleOf": 0}}, "multipleOf at # of the JSON schema is 0; it must be above 0"),
        ({"json_schema": {"multipleOf": 99991}}, "least common multiple 99991"),
        ({"json_schema": {"items": {"multipleOf": 997}, "multipleOf": 991}}, "least common multiple 988027"),
        (
            {"json_schema": {"patternProperties": {f"^{i}_": {} for i in range(33)}}},
            "33 different patternProp",
        ),
        ({"grammar": 'start: %json {"not": {}}'}, "the keyword not at # of the JSON schema"),
        ({"grammar": "start: %json {"}, "the JSON schema after %json cannot be read"),
    ],
)
def test_refused_at_once(given: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError) as refused:
        StructuredOutput(**given)
    assert message in str(refused.value)
    assert len(str(refused.value)) < 400
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"json_schema": False}, "the json_schema cannot be compiled: Unsatisfiable schema"),
        ({"json_schema": {"type": "strin"}}, "Invalid type: strin"),
        ({"json_schema": {"type": "string", "format": "phone"}}, "Unknown format: phone"),
        ({"json_schema": {"type": "string", "pattern": "(?=a)"}}, "look-around"),
        ({"json_schema": {"type": "string", "pattern": "("}}, "unclosed group"),
        ({"json_schema": {"type": "integer", "minimum": 3, "maximum": 2}}, "cannot be compiled"),
        ({"json_schema": {"oneOf": [{"type": "integer"}, {"minimum": 3}]}}, "oneOf"),
        ({"json_schema": {"$schema": "https://example.com/schema"}}, "is not present in a registry"),
        ({"regex": "a(b"}, "the regex cannot be compiled: unclosed group, at character 1"),
        ({"regex": "(?=a)b"}, "look-around, including look-ahead and look-behind, is not supported, at char"),
        ({"regex": r"(a)\1"}, "backreferences are not supported, at character 3"),
        ({"grammar": "hello"}, "the grammar cannot be compiled: 1(6): Expected token ':'"),
        ({"grammar": "start: foo"}, 'unknown name: "foo"'),
        ({"grammar": "begin: /a/"}, "start"),
        ({"grammar": "start: start"}, "no text, or none that the vocabulary can write, matches it"),
        ({"grammar": "start: <|nope|>"}, "unknown special token"),
        ({"grammar": '{"grammars": [{"json_schema": {}}]}'}, "the grammar cannot be compiled"),
        ({"grammar": "start: A\nA: B\nB: A"}, "circular reference"),
    ],
)
def test_refused_when_it_is_compiled(given: dict[str, Any], message: str, compiler: GrammarCompiler) -> None:
    wanted = StructuredOutput(**given)
    for _ in range(2):
        with pytest.raises(RequestError) as refused:
            compiler.constraint(wanted)
        assert message in str(refused.value)
        assert len(str(refused.value)) < 400


KEYWORDS: dict[str, Any] = {
    "type": "object", "enum": [1], "const": 1, "anyOf": [{}], "allOf": [{}], "oneOf": [{}],
    "$ref": "#/$defs/a",
    "items": {}, "prefixItems": [{}], "additionalItems": {}, "minItems": 1, "maxItems": 3,
    "properties": {"a": {}}, "additionalProperties": {}, "patternProperties": {"^a$": {}}, "required": ["a"],
    "minProperties": 1, "maxProperties": 3, "minLength": 1, "maxLength": 3, "pattern": "a", "format": "uuid",
    "minimum": 1, "maximum": 3, "exclusiveMinimum": 1, "exclusiveMaximum": 3, "multipleOf": 2,
    "title": "", "description": "", "default": 1, "examples": [1], "$comment": "", "deprecated": True,
    "readOnly": True, "writeOnly": True, "$id": "https://example.com/a.json", "contentEncoding": "base64",
    "contentMediaType": "image/png",
}  # fmt: skip
ASSERTIONS = re.findall(
    r"\S+",
    """not if then else contains minContains maxContains uniqueItems propertyNames dependencies
dependentRequired dependentSchemas unevaluatedItems unevaluatedProperties $dynamicRef $recursiveRef""",
)
DRAFTS = (
    None,
    "https://json-schema.org/draft/2020-12/schema",
    "https://json-schema.org/draft/2019-09/schema",
    "http://json-schema.org/draft-07/schema#",
    "http://json-schema.org/draft-06/schema#",
    "http://json-schema.org/draft-04/schema#",
)


@pytest.mark.parametrize("draft", DRAFTS)
def test_every_keyword_is_supported_or_refused_by_name(draft: str | None, compiler: GrammarCompiler) -> None:
    """Also one that the draft of the schema does not have, and that the library would pass over."""
    start: dict[str, Any] = {"$defs": {"a": {}}} | ({"$schema": draft} if draft else {})
    for keyword, value in KEYWORDS.items():
        compiler.compile(StructuredOutput(json_schema=start | {keyword: value}))
    for keyword in ASSERTIONS:
        with pytest.raises(RequestError, match=f"the keyword .?{keyword[1:]} at #/items of the JSON schema"):
            StructuredOutput(json_schema=start | {"items": {keyword: {}}})
    StructuredOutput(json_schema={"enum": [{"not": 1}], "properties": {"not": {}, "if": {}}})


def test_it_is_a_value() -> None:
    """It can be a key, and what is changed afterwards changes nothing."""
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    one, other = StructuredOutput(json_schema=schema), StructuredOutput(json_schema=json.dumps(schema))
    schema["properties"] = {}
    assert one == other
    assert hash(one) == hash(other)
    assert StructuredOutput(choice=["a", "b", "a"]).choice == ("a", "b")
    kinds = [StructuredOutput(json_schema=False).kind, StructuredOutput(json_object=True).kind]
    assert kinds == ["json_schema", "json_object"]


def test_the_library_is_asked_for_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    compiler = GrammarCompiler(demo(), DEMO_EOS)
    with pytest.raises(MissingPackage, match="structured output needs llguidance: pip install"):
        compiler.constraint(StructuredOutput(regex="a"))
    compiler.close()
