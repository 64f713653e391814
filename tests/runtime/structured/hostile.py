"""Compiles hostile inputs in a process with little memory and time; run by test_hostile.py."""

from __future__ import annotations

import json
import random
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cleave.errors import RequestError
from cleave.runtime.structured.compiler import GrammarCompiler
from cleave.runtime.structured.params import StructuredOutput
from cleave.runtime.tokenizer import Tokenizer

CPU_SECONDS = 60
EOS = (1, 3)


def nested(depth: int, inner: Any) -> Any:
    for _ in range(depth):
        inner = {"type": "object", "properties": {"a": inner}, "required": ["a"]}
    return inner


def chain(length: int, link: Callable[[dict[str, str]], Any]) -> dict[str, Any]:
    """Definitions of which each refers to the next."""
    defs = {f"d{index}": link({"$ref": f"#/$defs/d{index + 1}"}) for index in range(length)}
    return {"$ref": "#/$defs/d0", "$defs": defs | {f"d{length}": {"type": "string"}}}


def rules(count: int, body: str, name: str = "r") -> str:
    lines = [f"{name}{index}: {body.replace('NEXT', f'{name}{index + 1}')}" for index in range(count)]
    return "\n".join([f"start: {name}0", *lines, f'{name}{count}: "b"'])


INPUTS: dict[str, Callable[[], dict[str, Any]]] = {
    "parentheses": lambda: {"grammar": "start: " + "(" * 30_000 + '"a"' + ")" * 30_000},
    "chain of rules": lambda: {"grammar": rules(3300, '"a" NEXT')},
    "chain of nested rules": lambda: {"grammar": rules(700, "(" * 28 + "NEXT" + ")" * 28)},
    "chain of terminals": lambda: {"grammar": rules(3300, '"a" NEXT', "R")},
    "exponential rules": lambda: {"grammar": rules(40, "NEXT NEXT NEXT")},
    "exponential terminals": lambda: {"grammar": rules(40, "NEXT NEXT NEXT", "R")},
    "long terminal": lambda: {"grammar": "start: A\nA: " + ' "a"? /b|c/*' * 5000},
    "intersections": lambda: {
        "grammar": "start: A\nA: " + " & ".join(f"/(?s:.*)[a-{c}].{{9}}(?s:.*)/" for c in "bcdefghijklmnop")
    },
    "substrings": lambda: {
        "grammar": 'start: A\nA: %regex {"substring_chars": "' + "abcacbbcb" * 6000 + '"}'
    },
    "embedded schema": lambda: {"grammar": 'start: %json {"multipleOf": 99991}'},
    "nested groups": lambda: {"regex": "(" * 30_000 + "a" + ")" * 30_000},
    "repeated repeats": lambda: {"regex": "((a{1,1000}){1,1000}){1,1000}"},
    "nested repeats": lambda: {"regex": "(((((a|b|c){1,50}x){1,50}y){1,50}z){1,50}w){1,50}"},
    "far memory": lambda: {"regex": "(.*a.{300}b)|(.*c.{310}d)"},
    "every letter": lambda: {"regex": r"\p{L}{1,1000}(\w\W){1,1000}"},
    "many alternatives": lambda: {"regex": "|".join(f"{index}.*" for index in range(8000))},
    "many choices": lambda: {"choice": [f"{index * 7919} {index}" for index in range(18_000)]},
    "deep text": lambda: {"json_schema": '{"items":' * 25_000},
    "deep schema": lambda: {"json_schema": nested(50, {"type": "integer"})},
    "chain of references": lambda: {"json_schema": chain(5000, lambda link: link)},
    "chain of nested references": lambda: {"json_schema": chain(100, lambda link: nested(50, link))},
    "siblings of references": lambda: {
        "json_schema": chain(2000, lambda link: {"items": link, "allOf": [link]})
    },
    "exponential references": lambda: {"json_schema": chain(20, lambda link: {"allOf": [link] * 10})},
    "exponential objects": lambda: {
        "json_schema": {
            "allOf": [
                {"anyOf": [{"type": "object", "properties": {f"a{i}_{j}": {}}} for j in range(4)]}
                for i in range(12)
            ]
        }
    },
    "patterns": lambda: {
        "json_schema": {"patternProperties": {f"^{chr(97 + i % 26)}.*{i}$": {} for i in range(32)}}
    },
    "multiples": lambda: {"json_schema": {"prefixItems": [{"type": "integer", "multipleOf": 9973}] * 20}},
    "ranges": lambda: {
        "json_schema": {
            "type": "array",
            "prefixItems": [{"type": "integer", "minimum": i, "maximum": 3 * i + 1} for i in range(4500)],
        }
    },
    "long strings": lambda: {"json_schema": {"type": "string", "minLength": 10**6, "maxLength": 10**9}},
    "long arrays": lambda: {"json_schema": {"minItems": 10**6, "items": {"pattern": "^[a-z]{1,1000}$"}}},
    "large enum": lambda: {"json_schema": {"enum": [f"value {index}" for index in range(15_000)]}},
    "large union": lambda: {"json_schema": {"oneOf": [{"const": f"a{index}"} for index in range(12_000)]}},
}


def outcome(compiler: GrammarCompiler, make: Callable[[], dict[str, Any]]) -> str:
    """ "refused", "ended" by an error of its own, or "runs" for as long as it was looked at."""
    try:
        constraint = compiler.constraint(StructuredOutput(**make()))
    except RequestError:
        return "refused"
    generator = random.Random(0)
    try:
        for _ in range(150):
            bits = np.flatnonzero(np.unpackbits(constraint.mask().view(np.uint8), bitorder="little"))
            constraint.accept(int(generator.choice([token for token in bits if token not in EOS] or EOS)))
    except RequestError:
        return "ended"
    return "runs"


def main() -> None:
    tokenizer = Tokenizer(Path(sys.argv[1]), 3072)
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    compiler = GrammarCompiler(tokenizer, EOS, threads=1, kept=2)
    compiler.constraint(StructuredOutput(json_object=True))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({name: outcome(compiler, make) for name, make in INPUTS.items()}))
    compiler.close()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(json.dumps(grown * 1024))


if __name__ == "__main__":
    main()
