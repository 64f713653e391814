"""Which JSON schemas are taken on: unsupported keywords are refused by name, costly ones are bounded.

The library (llguidance) refuses most of what it does not support by itself. What it would let pass in
silence, or spend minutes or the whole stack on, is refused here, with the place in the schema.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any
from urllib.parse import unquote

from cleave.errors import RequestError, reason

MAX_DEPTH = 100
"""Deepest nesting of a schema."""
MAX_OPTIONAL = 500
"""Most optional properties of an object: after `{` any of them may come first."""
MAX_PATTERNS = 32
"""Most different patternProperties of a schema: each pair is proved disjoint."""
MAX_MULTIPLE = 10_000
"""Largest least common multiple of a schema's multipleOf; each needs that many states."""
MAX_MULTIPLE_STATES = 200_000

_REFUSED = {
    "not": "",
    "if": "",
    "then": "",
    "else": "",
    "contains": "",
    "minContains": "",
    "maxContains": "",
    "uniqueItems": "",
    "propertyNames": "use patternProperties with additionalProperties false",
    "dependencies": "",
    "dependentRequired": "",
    "dependentSchemas": "",
    "unevaluatedItems": "use items false",
    "unevaluatedProperties": "use additionalProperties false",
    "contentSchema": "",
    "$dynamicRef": "use $ref",
    "$dynamicAnchor": "",
    "$recursiveRef": "use $ref",
    "$recursiveAnchor": "",
    "$anchor": "refer to it by its path, such as #/$defs/name",
    "nullable": 'use "type": ["string", "null"] or anyOf',
    "x-guidance": "use disable_any_whitespace",
}
"""Keywords that would be ignored in some draft or place, or that change how the library reads the schema;
with what to use instead."""
_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_SINGLE = ("items", "additionalItems", "additionalProperties")
_EMBEDDED = re.compile(r"%json\s*")


def check_schema(schema: object) -> None:
    """Raises RequestError for a schema, parsed from JSON, that is not supported."""
    nodes = list(_subschemas(schema))
    known = {id(node) for _, node in nodes}
    patterns: set[str] = set()
    multiples: list[int] = []
    for place, node in nodes:
        _check_keywords(place, node)
        _check_reference(place, node, schema, known)
        _check_least_properties(place, node)
        optional = set(node.get("properties", ())) - set(map(str, _list(place, node, "required")))
        if len(optional) > MAX_OPTIONAL:
            raise RequestError(
                f"the JSON schema has {len(optional)} optional properties at {place}; at most {MAX_OPTIONAL} "
                "are supported"
            )
        patterns.update(node.get("patternProperties", ()))
        if "multipleOf" in node:
            multiples.append(_multiple(place, node["multipleOf"]))
    if len(patterns) > MAX_PATTERNS:
        raise RequestError(
            f"the JSON schema has {len(patterns)} different patternProperties; at most {MAX_PATTERNS} are "
            "supported"
        )
    common = math.lcm(*set(multiples))
    if common > MAX_MULTIPLE or common * len(multiples) > MAX_MULTIPLE_STATES:
        raise RequestError(
            f"the JSON schema has {len(multiples)} multipleOf with the least common multiple {common} "
            f"(points left out); supported are {MAX_MULTIPLE}, and {MAX_MULTIPLE_STATES} for all together"
        )


def check_embedded_schemas(grammar: str) -> None:
    """The same for the schemas after `%json` in a grammar."""
    decoder = json.JSONDecoder()
    for found in _EMBEDDED.finditer(grammar):
        try:
            schema, _ = decoder.raw_decode(grammar, found.end())
        except (ValueError, RecursionError) as error:
            raise RequestError(f"the JSON schema after %json cannot be read ({reason(error)})") from None
        check_schema(schema)


def _subschemas(schema: object) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every object that is read as a schema, with its place as a JSON pointer.

    Raises RequestError for one that is no schema, or is nested too deeply.
    """
    waiting: list[tuple[str, object, int]] = [("#", schema, 0)]
    while waiting:
        place, node, depth = waiting.pop()
        if isinstance(node, bool):
            continue
        if not isinstance(node, dict):
            raise RequestError(f"the JSON schema at {place} is {node!r:.40}; it must be an object or a bool")
        if depth > MAX_DEPTH:
            raise RequestError(f"the JSON schema is nested deeper than {MAX_DEPTH} schemas")
        yield place, node
        for keyword in _MAPS:
            children = node.get(keyword, {})
            if not isinstance(children, dict):
                raise RequestError(f"{keyword} at {place} of the JSON schema must be an object")
            waiting += [
                (f"{place}/{keyword}/{_escaped(name)}", child, depth + 1) for name, child in children.items()
            ]
        for keyword in _LISTS:
            if isinstance(node.get(keyword), list):
                waiting += [
                    (f"{place}/{keyword}/{index}", child, depth + 1)
                    for index, child in enumerate(node[keyword])
                ]
            elif keyword not in _SINGLE:
                _list(place, node, keyword)
        for keyword in _SINGLE:
            if keyword in node and not isinstance(node[keyword], list):
                waiting.append((f"{place}/{keyword}", node[keyword], depth + 1))


def _list(place: str, node: Mapping[str, Any], keyword: str) -> list[Any]:
    listed = node.get(keyword, [])
    if not isinstance(listed, list):
        raise RequestError(f"{keyword} at {place} of the JSON schema must be a list")
    return listed


def _check_keywords(place: str, node: Mapping[str, Any]) -> None:
    for keyword in node:
        if keyword in _REFUSED:
            instead = _REFUSED[keyword]
            raise RequestError(
                f"the keyword {keyword} at {place} of the JSON schema is not supported"
                + (f"; {instead}" if instead else "")
            )
    if place != "#" and "$id" in node:
        raise RequestError(f"$id at {place} of the JSON schema is not supported; only at the top")


def _check_reference(place: str, node: Mapping[str, Any], schema: object, known: set[int]) -> None:
    """Only places that were checked themselves may be referred to."""
    reference = node.get("$ref")
    if reference is None:
        return
    target: Any = schema if isinstance(reference, str) and reference.startswith("#") else None
    for part in unquote(str(reference)).split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(target, list) and name.isdecimal() and int(name) < len(target):
            target = target[int(name)]
        else:
            target = target.get(name) if isinstance(target, dict) else None
    is_pointer = isinstance(reference, str) and re.match(r"#(/|$)", reference)
    if not is_pointer or not (isinstance(target, bool) or id(target) in known):
        raise RequestError(
            f"$ref {reference!r:.80} at {place} of the JSON schema is not supported; it must be the path of "
            "a schema in the same document, such as #/$defs/name"
        )


def _check_least_properties(place: str, node: Mapping[str, Any]) -> None:
    """Keys that no `properties` name may come twice, which JSON then takes for one."""
    least, names = node.get("minProperties", 0), len(set(map(str, _list(place, node, "required"))))
    is_open = node.get("additionalProperties", True) is not False or node.get("patternProperties")
    if isinstance(least, int | float) and least > names + 1 and is_open:
        raise RequestError(
            f"minProperties {least} at {place} of the JSON schema is not supported, because equal keys are "
            f"not told apart; name all but one of them in required"
        )


def _multiple(place: str, value: object) -> int:
    """The digits of a multipleOf without the point."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise RequestError(f"multipleOf at {place} of the JSON schema is {value!r}; it must be above 0")
    return int("".join(map(str, Decimal(str(value)).normalize().as_tuple().digits)))


def _escaped(name: str) -> str:
    """A key as part of a JSON pointer, cut where it is long."""
    return name[:40].replace("~", "~0").replace("/", "~1")
