"""An export part by part, in any order, is the export in one go; what is not of one kind does not mix."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import assert_one_sentence, cleave, contents
from damage import copy_of
from exports import refused
from safetensors.numpy import load_file, save_file

from cleave.errors import ArtifactError, ExportError
from cleave.export import exporter
from cleave.export.artifact import BATCHFUL, WEIGHTS, Artifact, read_manifest
from cleave.export.exporter import ExportRequest, export
from cleave.export.manifest import PARTS

QUICK = tuple(part for part in PARTS if part != "batchful")


# The order of the parts.

ORDERS = [
    PARTS,
    PARTS[::-1],
    ("embed_tokens", "batchful", "tokenizer", "decode_batchless", "prefill_batchless"),
    ("tokenizer", "prefill_batchless", "batchful", "decode_batchless", "embed_tokens"),
    ("decode_batchless", "embed_tokens", "prefill_batchless", "tokenizer", "batchful"),
    ("batchful", "embed_tokens", "batchful", "tokenizer", "embed_tokens", *PARTS[1:3]),
]


@pytest.mark.usefixtures("cached_traces")
@pytest.mark.parametrize("variant", ["two_layers", "tied", "qwen2_mixed_windows"])
def test_the_parts_in_any_order_give_the_same_files_byte_for_byte(
    variant: str, checkpoint: Callable[[str], Path], artifact: Callable[[str], Path], tmp_path: Path
) -> None:
    expected = contents(artifact(variant))
    for number, order in enumerate(ORDERS):
        output = tmp_path / str(number)
        for count, part in enumerate(order, start=1):
            manifest = export(ExportRequest(str(checkpoint(variant)), output, (part,), check=False))
            assert set(manifest.missing_parts) == set(PARTS) - set(order[:count])
        assert contents(output) == expected, order


def test_every_part_alone_can_be_read_before_the_others_come(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    for part in QUICK:
        output = tmp_path / part
        export(ExportRequest(str(checkpoint("two_layers")), output, (part,), check=False))
        assert read_manifest(output).parts.keys() == {part}
        with pytest.raises(ArtifactError, match=f"lacks {next(other for other in PARTS if other != part)}"):
            Artifact.open(output)


def test_the_command_exports_as_the_example_does(
    checkpoint: Callable[[str], Path], artifact: Callable[[str], Path], tmp_path: Path
) -> None:
    options = ("--model", checkpoint("one_layer"), "--output_dir", tmp_path, "--no_check")
    for part in PARTS:
        layers = ("--num_layers", 1) if part == "batchful" else ()
        ended = cleave("export", *options, "--export", part, *layers)
        assert ended.code == 0, ended
        missing = PARTS[PARTS.index(part) + 1 :]
        assert (f"still missing: {', '.join(missing)}" in ended.err) == bool(missing)
    assert contents(tmp_path) == contents(artifact("one_layer"))


def test_a_checked_export_says_how_far_it_is_from_transformers(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    manifest = export(ExportRequest(str(checkpoint("one_layer")), tmp_path))
    assert manifest.check["tokens"] == 48
    assert 0 < manifest.check["relative_error"] < 1e-5
    assert read_manifest(tmp_path) == manifest


def test_all_orders_of_two_parts_agree(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    for pair in itertools.combinations(QUICK, 2):
        seen = []
        for order in (pair, pair[::-1]):
            output = tmp_path / "-".join(order)
            for part in order:
                export(ExportRequest(str(checkpoint("two_layers")), output, (part,), check=False))
            seen.append(contents(output))
        assert seen[0] == seen[1]


# What does not mix.


@pytest.fixture
def present(checkpoint: Callable[[str], Path], tmp_path: Path) -> Path:
    """An output_dir with some parts of gqa in float16, of its first two layers."""
    output = tmp_path / "output"
    parts = ("embed_tokens", "decode_batchless")
    export(ExportRequest(str(checkpoint("gqa")), output, parts, num_layers=2, dtype="float16", check=False))
    return output


def test_parts_of_two_checkpoints(present: Path, checkpoint: Callable[[str], Path]) -> None:
    before = contents(present)
    for parts in (("tokenizer",), PARTS):
        refused("another checkpoint", model=str(checkpoint("mha")), output_dir=present, parts=parts)
    assert contents(present) == before


def test_a_fine_tune_is_another_checkpoint(
    present: Path, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    model = copy_of(checkpoint("gqa"), tmp_path / "tuned")
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"] += 1
    save_file(tensors, model / "model.safetensors")
    refused("another checkpoint", model=str(model), output_dir=present, parts=("tokenizer",))


def test_a_copy_of_a_checkpoint_is_the_same_one(
    present: Path, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    model = copy_of(checkpoint("gqa"), tmp_path / "copy")
    export(ExportRequest(str(model), present, ("tokenizer",), check=False))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dtype": "float32"}, ("dtype float16", "float32")),
        ({"dtype": "bfloat16"}, ("dtype float16", "bfloat16")),
        ({"num_layers": 1}, ("num_layers 2", "1")),
        ({"num_layers": 3}, ("num_layers 2", "3")),
    ],
    ids=str,
)
@pytest.mark.parametrize("part", PARTS)
def test_parts_of_two_dtypes_or_depths(
    present: Path,
    checkpoint: Callable[[str], Path],
    options: dict[str, Any],
    words: tuple[str, ...],
    part: str,
) -> None:
    before = contents(present)
    refused(
        *words, "--output_dir", model=str(checkpoint("gqa")), output_dir=present, parts=(part,), **options
    )
    assert contents(present) == before


def test_what_is_left_out_is_as_the_present_parts_have_it(
    present: Path, checkpoint: Callable[[str], Path]
) -> None:
    for part in ("prefill_batchless", "tokenizer", "embed_tokens"):
        manifest = export(ExportRequest(str(checkpoint("gqa")), present, (part,), check=False))
        assert (manifest.dtype, manifest.num_layers) == ("float16", 2)
    assert {tensor.dtype for tensor in load_file(present / WEIGHTS).values()} == {np.dtype(np.float16)}


@pytest.mark.usefixtures("cached_traces")
def test_a_whole_export_replaces_everything(
    present: Path, checkpoint: Callable[[str], Path], artifact: Callable[[str], Path]
) -> None:
    export(ExportRequest(str(checkpoint("gqa")), present, check=False))
    assert contents(present) == contents(artifact("gqa"))
    manifest = export(
        ExportRequest(str(checkpoint("gqa")), present, dtype="float16", num_layers=1, check=False)
    )
    assert (manifest.dtype, manifest.num_layers) == ("float16", 1)
    Artifact.open(present).batchful_graph()


def test_files_that_no_part_has_any_more_are_gone(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    """One layer of qwen2_mixed_windows has one attention spec, three of them two."""
    model = copy_of(checkpoint("qwen2_mixed_windows"), tmp_path / "model")
    output = tmp_path / "output"
    export(ExportRequest(str(model), output, check=False))
    assert (output / "decode_batchless_1.onnx").is_file()
    export(ExportRequest(str(model), output, num_layers=1, check=False))
    assert not list(output.glob("*_1.onnx"))
    (model / "generation_config.json").unlink()
    export(ExportRequest(str(model), output, ("tokenizer",), check=False))
    assert not (output / "generation_config.json").exists()
    assert {path.name for path in output.iterdir()} == {*read_manifest(output).files, "manifest.json"}


@pytest.mark.parametrize("text", ["", "{}", '{"format": 99}', "\x00"])
def test_a_manifest_that_cannot_be_read_stops_parts_and_not_a_whole_export(
    checkpoint: Callable[[str], Path], artifact: Callable[[str], Path], tmp_path: Path, text: str
) -> None:
    model, output = str(checkpoint("one_layer")), copy_of(artifact("one_layer"), tmp_path / "output")
    (output / "manifest.json").write_text(text)
    before = contents(output)
    with pytest.raises(ArtifactError, match="again"):
        export(ExportRequest(model, output, ("tokenizer",), check=False))
    assert contents(output) == before
    if text:  # once is enough: it traces
        return
    export(ExportRequest(model, output, check=False))
    assert contents(output) == contents(artifact("one_layer"))


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_the_part_that_mends_damaged_weights_is_named(
    checkpoint: Callable[[str], Path], artifact: Callable[[str], Path], tmp_path: Path, damage: str
) -> None:
    model, output = str(checkpoint("one_layer")), copy_of(artifact("one_layer"), tmp_path / "output")
    if damage == "missing":
        (output / WEIGHTS).unlink()
    else:
        (output / WEIGHTS).write_bytes((output / WEIGHTS).read_bytes()[:-1])
    refused("export batchful again", model=model, output_dir=output, parts=("embed_tokens",))
    export(ExportRequest(model, output, ("batchful",), check=False))
    assert contents(output) == contents(artifact("one_layer"))


def test_a_check_needs_the_files_of_the_other_parts(
    checkpoint: Callable[[str], Path], artifact: Callable[[str], Path], tmp_path: Path
) -> None:
    output = copy_of(artifact("one_layer"), tmp_path / "output")
    (output / BATCHFUL).unlink()
    with pytest.raises(ExportError) as error:
        export(ExportRequest(str(checkpoint("one_layer")), output, ("tokenizer",)))
    assert_one_sentence(str(error.value), "", BATCHFUL, "missing")


def test_room_is_asked_for_the_layers_that_are_exported(
    checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(exporter, "require_space", lambda _, needed: asked.append(needed))
    for number in (1, 3):
        output = tmp_path / str(number)
        export(ExportRequest(str(checkpoint("gqa")), output, num_layers=number, check=False))
        written = sum(path.stat().st_size for path in output.iterdir())
        assert written < asked[-1] < written + (65 << 20)
    assert asked[-1] > asked[1]
