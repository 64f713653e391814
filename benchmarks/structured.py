"""Structured output: llguidance beside xgrammar (which needs torch), on tokenizers of 32k and 128k tokens.

Compile time cold and cached, time of a mask on documents of real-world-like schemas, which features of JSON
Schema each one enforces, and what a mask costs the engine's thread when it is computed in the background.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from record import save
from rich.console import Console
from rows import rows_table
from structured_cases import FEATURES, SCHEMAS
from structured_libraries import EOS, LIBRARIES, Llguidance, Matcher, Xgrammar
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from cleave.runtime.structured.compiler import GrammarCompiler
from cleave.runtime.structured.matcher import GrammarConstraint
from cleave.runtime.structured.params import StructuredOutput
from cleave.runtime.tokenizer import Tokenizer

ENGINE_SECONDS = 0.005


def texts() -> Iterator[str]:
    """What the tokenizers are trained on: Python's own library, and words made of syllables."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.glob("*.py")) + sorted(root.glob("[a-l]*/*.py")):
        yield path.read_text("utf-8", errors="ignore")
    generator = random.Random(0)
    syllables = [
        a + b + c
        for a in "bcdfghklmnprstvwz"
        for b in ("a", "e", "i", "o", "u", "ai")
        for c in ("", "n", "r")
    ]
    for _ in range(4000):
        yield " ".join("".join(generator.choices(syllables, k=generator.randint(2, 4))) for _ in range(100))
    yield from (json.dumps(document) for _, document in SCHEMAS.values())


def tokenizer(size: int, folder: Path) -> Tokenizer:
    """A byte-level BPE tokenizer of `size` tokens, trained here, or found in the folder."""
    file = folder / f"{size}.json"
    if not file.is_file():
        made = RustTokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        made.train_from_iterator(
            texts(),
            trainers.BpeTrainer(
                vocab_size=size,
                special_tokens=["</s>"],
                initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                show_progress=False,
            ),
        )
        made.save(str(file))
    loaded = RustTokenizer.from_file(str(file))
    if loaded.get_vocab_size() < size:
        raise SystemExit(f"the texts give a tokenizer of {loaded.get_vocab_size()} tokens, not of {size}")
    return Tokenizer(file, size)


def seconds(run: Callable[..., object], *arguments: object) -> float:
    """How long a call takes."""
    began = time.perf_counter()
    run(*arguments)
    return time.perf_counter() - began


def begin(library: Llguidance | Xgrammar, schema: Any) -> Matcher:
    """What a new request costs."""
    return library.compile(schema)()


def accept_all(constraints: list[GrammarConstraint], token: int) -> None:
    """Every request goes on by a token."""
    for constraint in constraints:
        constraint.accept(token)


def mask_all(constraints: list[GrammarConstraint]) -> None:
    """Every request asks for its mask."""
    for constraint in constraints:
        constraint.mask()


def speed(made: Tokenizer, name: str, repetitions: int) -> Iterator[dict[str, Any]]:
    """Compile times and mask times, a row for each schema."""
    encoder = RustTokenizer.from_str(made.definition)
    began = time.perf_counter()
    library = LIBRARIES[name](made)
    loading = time.perf_counter() - began
    for title, (schema, document) in SCHEMAS.items():
        tokens = encoder.encode(json.dumps(document, ensure_ascii=False), add_special_tokens=False).ids
        cold, cached, masks, accepts = [], [], [], []
        for _ in range(repetitions):
            library.forget()
            cold.append(seconds(begin, library, schema))
            cached.append(seconds(begin, library, schema))
            matcher = begin(library, schema)
            for token in tokens:
                masks.append(seconds(matcher.mask))
                began = time.perf_counter()
                if not matcher.accept(token):
                    raise SystemExit(f"{name} does not take the document of {title}")
                accepts.append(time.perf_counter() - began)
            gc.collect()
        yield {
            "library": name,
            "vocab": made.vocab_size,
            "schema": title,
            "tokens": len(tokens),
            "vocab_ms": round(loading * 1e3),
            "cold_ms": round(statistics.median(cold) * 1e3, 2),
            "cached_ms": round(statistics.median(cached) * 1e3, 3),
            "mask_us": round(statistics.median(masks) * 1e6, 1),
            "mask_p99_us": round(float(np.percentile(masks, 99)) * 1e6, 1),
            "mask_max_us": round(max(masks) * 1e6, 1),
            "accept_us": round(statistics.median(accepts) * 1e6, 1),
        }


def takes(maker: Callable[[], Matcher], encoder: RustTokenizer, text: str) -> bool:
    """Whether a text is one that the grammar allows."""
    matcher = maker()
    return all(map(matcher.accept, encoder.encode(text, add_special_tokens=False).ids)) and matcher.may_end()


def coverage(made: Tokenizer) -> Iterator[dict[str, str]]:
    """What each library makes of a feature: enforced, refused, ignored in silence, too strict."""
    encoder = RustTokenizer.from_str(made.definition)
    libraries = {name: make(made) for name, make in LIBRARIES.items()}
    for feature, (schema, right, wrong) in FEATURES.items():
        row = {"feature": feature}
        for name, library in libraries.items():
            try:
                maker = library.compile(schema)
            except Exception:
                row[name] = "refused"
                continue
            is_loose = any(takes(maker, encoder, text) for text in wrong)
            is_strict = not all(takes(maker, encoder, text) for text in right)
            row[name] = "ignored" if is_loose else "too strict" if is_strict else "enforced"
        yield row


def background(made: Tokenizer, requests: int) -> dict[str, Any]:
    """What the engine's thread pays with masks computed meanwhile, and without; microseconds a request."""
    encoder = RustTokenizer.from_str(made.definition)
    compiler = GrammarCompiler(made, (EOS,))
    schema, document = SCHEMAS["map of records"]
    wanted = StructuredOutput(json_schema=schema)
    tokens = encoder.encode(json.dumps(document), add_special_tokens=False).ids
    constraints = [compiler.constraint(wanted) for _ in range(requests)]
    accepts, waits, at_once = [], [], []
    for token in tokens:
        accepts.append(seconds(accept_all, constraints, token))
        time.sleep(ENGINE_SECONDS)  # the engine, which runs outside of Python
        waits.append(seconds(mask_all, constraints))
    constraints = [compiler.constraint(wanted) for _ in range(requests)]
    for token in tokens:
        at_once.append(seconds(accept_all, constraints, token) + seconds(mask_all, constraints))
    compiler.close()
    return {
        "vocab": made.vocab_size,
        "requests": requests,
        "accept_us": round(statistics.median(accepts) * 1e6 / requests, 1),
        "wait_us": round(statistics.median(waits) * 1e6 / requests, 1),
        "wait_p99_us": round(float(np.percentile(waits, 99)) * 1e6 / requests, 1),
        "not_overlapped_us": round(statistics.median(at_once) * 1e6 / requests, 1),
        "engine_ms": ENGINE_SECONDS * 1e3,
    }


def main() -> None:
    """Measure, print the tables, write results/structured.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="32000,128000")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where trained tokenizers are kept")
    arguments = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        made = [tokenizer(int(size), folder) for size in arguments.sizes.split(",")]
    covered = list(coverage(made[0]))
    console.print(rows_table("Features of JSON Schema", covered))
    rows = [row for one in made for name in LIBRARIES for row in speed(one, name, arguments.repetitions)]
    console.print(rows_table("Compile and mask", rows))
    overlapped = [background(one, requests) for one in made for requests in (1, 8, 64)]
    console.print(rows_table("Masks while the engine runs, microseconds a request", overlapped))
    figures = {
        "libraries": {name: version(name) for name in LIBRARIES},
        "speed": rows,
        "coverage": covered,
        "background": overlapped,
    }
    console.print(f"written to {save('structured', figures)}")


if __name__ == "__main__":
    main()
