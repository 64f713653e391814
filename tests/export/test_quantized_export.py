"""`cleave export --quantize`: what is written, in which parts, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command import assert_one_sentence, cleave, contents
from damage import copy_of, edit_json
from safetensors.torch import load_file, save_file

from cleave.errors import ArtifactError, ExportError
from cleave.export.artifact import Artifact
from cleave.export.dequantized import dequantized_weights
from cleave.export.exporter import ExportRequest, export
from cleave.export.manifest import MANIFEST, PARTS
from cleave.export.quantization import Quantization
from cleave.export.quantization_choice import check_quantization
from cleave.export.shape import ModelShape
from cleave.runtime.bench.counts import ModelShape as CountedShape

GQA = {"hidden": 64, "intermediate": 96, "vocab": 301, "kv": 32, "layers": 3}
LINEAR = GQA["layers"] * 64 * (64 + 32 + 32 + 64 + 3 * 96)
"""Weights of the linear layers of the variants gqa and tied, counted by hand."""


# What is written.


@pytest.mark.parametrize("variant", ["gqa", "tied"])
@pytest.mark.parametrize("options", [{"quantize": "int8", "quantize_embedding": True}, {"quantize": "int4"}])
def test_every_matrix_comes_back_near_the_checkpoints(
    variant: str,
    options: dict[str, Any],
    checkpoint: Callable[[str], Path],
    quantized_artifact: Callable[..., Path],
) -> None:
    artifact = Artifact.open(quantized_artifact(variant, **options))
    original = load_file(checkpoint(variant) / "model.safetensors")
    back = dict(dequantized_weights(artifact))
    matrices = {name for name, tensor in original.items() if tensor.ndim == 2} | {"lm_head.weight"}
    assert set(back) == matrices - (
        set() if "quantize_embedding" in options else {"model.embed_tokens.weight"}
    )
    for name, matrix in back.items():
        expected = original.get(name, original["model.embed_tokens.weight"]).numpy()
        error = np.linalg.norm(matrix - expected) / np.linalg.norm(expected)
        assert error < (0.01 if options["quantize"] == "int8" else 0.11), name
    floats = set(original) - set(back)
    for name in floats:
        np.testing.assert_array_equal(artifact.weight(name), original[name].numpy())


def test_the_manifest_says_what_is_quantised_and_how(quantized_artifact: Callable[..., Path]) -> None:
    manifest = Artifact.open(quantized_artifact("tied", quantize="int4")).manifest
    quantization = manifest.quantization
    assert quantization is not None
    assert (quantization.method, quantization.group_size, quantization.lm_head) == ("int4", 32, True)
    assert len(quantization.tensors) == 4 * 3 + 1
    members = {name for tensor in quantization.tensors for name, _ in tensor.members}
    assert {name for name in members if ".layers.0." in name} == {
        f"model.layers.0.{layer}_proj.weight"
        for layer in (*(f"self_attn.{x}" for x in "qkvo"), *(f"mlp.{x}" for x in ("gate", "up", "down")))
    }
    assert Quantization.from_dict(json.loads(manifest.to_json())["quantization"]) == quantization


def test_an_unquantised_artifact_is_as_before(artifact: Callable[[str], Path]) -> None:
    data = json.loads((artifact("gqa") / MANIFEST).read_text("utf-8"))
    assert data["format"] == 1
    assert "quantization" not in data


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_an_embedding_apart_stays_in_the_checkpoints_dtype(
    dtype: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    from checkpoints import make_checkpoint

    source = make_checkpoint(tmp_path / "checkpoint", dtype=getattr(torch, dtype), tie_word_embeddings=True)
    export(ExportRequest(str(source), tmp_path / "artifact", quantize="int8", quality=False))
    artifact = Artifact.open(tmp_path / "artifact")
    assert artifact.manifest.dtype == "float32"
    assert str(artifact.embedding().dtype) == dtype
    assert artifact.manifest.check["relative_error"] < 1e-4


# Part by part.


@pytest.mark.usefixtures("cached_traces")
@pytest.mark.parametrize("variant", ["gqa", "tied"])
@pytest.mark.parametrize("order", [PARTS[::-1], ("embed_tokens", "tokenizer", *PARTS[:3])])
def test_the_parts_in_any_order_give_the_same_files(
    variant: str,
    order: tuple[str, ...],
    checkpoint: Callable[[str], Path],
    quantized_artifact: Callable[..., Path],
    tmp_path: Path,
) -> None:
    options: dict[str, Any] = {"quantize": "int8", "quantize_embedding": True}
    expected = contents(quantized_artifact(variant, **options))
    for part in order:
        export(
            ExportRequest(str(checkpoint(variant)), tmp_path, (part,), check=False, quality=False, **options)
        )
        options = {}  # what is there already says how
    assert contents(tmp_path) == expected


def test_parts_of_another_quantisation_do_not_mix(
    checkpoint: Callable[[str], Path],
    quantized_artifact: Callable[..., Path],
    artifact: Callable[[str], Path],
) -> None:
    source = str(checkpoint("gqa"))
    for folder, options in (
        (quantized_artifact("gqa", quantize="int8"), {"quantize": "int4"}),
        (quantized_artifact("gqa", quantize="int8"), {"quantize_embedding": True}),
        (quantized_artifact("gqa", quantize="int4"), {"quantize": "int4", "quantize_lm_head": False}),
        (artifact("gqa"), {"quantize": "int8"}),
    ):
        with pytest.raises(ExportError) as error:
            export(ExportRequest(source, folder, ("embed_tokens",), check=False, quality=False, **options))
        assert_one_sentence(str(error.value), str(folder), "does not mix")


@pytest.mark.parametrize(("method", "words"), [("int4", ("0", "32, 64, 128")), ("int8", ("for int4",))])
def test_no_group_size_is_taken_for_that_of_the_other_parts(
    method: str,
    words: tuple[str, ...],
    checkpoint: Callable[[str], Path],
    quantized_artifact: Callable[..., Path],
) -> None:
    folder = quantized_artifact("gqa", quantize=method)
    with pytest.raises(ExportError) as error:
        export(ExportRequest(str(checkpoint("gqa")), folder, ("embed_tokens",), group_size=0))
    assert_one_sentence(str(error.value), "group_size is", *words)


# What is refused, before anything is traced.


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--quantize", "int5"), ("int5", "int8, int4")),
        (("--quantize", "int4", "--group_size", "16"), ("16", "32, 64, 128")),
        (("--quantize", "int4", "--group_size", "64"), ("down_proj", "96", "--group_size 32")),
        (("--quantize", "int8", "--group_size", "32"), ("group_size", "int4")),
        (("--group_size", "32"), ("--quantize",)),
        (("--no_quantize_lm_head",), ("--quantize",)),
        (("--quantize", "int8", "--dtype", "float16"), ("float16", "--dtype")),
    ],
)
def test_options_that_do_not_fit_are_refused_in_a_sentence(
    options: tuple[str, ...], words: tuple[str, ...], checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    ended = cleave("export", "--model", checkpoint("gqa"), "--output_dir", tmp_path / "a", *options)
    assert ended.code == 2
    for word in words:
        assert word in ended.err
    assert not (tmp_path / "a").exists() or not list((tmp_path / "a").iterdir())


def test_values_that_are_not_finite_are_refused(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    folder = copy_of(checkpoint("gqa"), tmp_path / "checkpoint")
    tensors = load_file(folder / "model.safetensors")
    tensors[name][3, 4] = torch.inf
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ExportError, match=f"{name} has values that are not finite"):
        export(ExportRequest(str(folder), tmp_path / "artifact", quantize="int4"))
    assert not list((tmp_path / "artifact").glob("*"))


def test_more_inputs_than_an_int32_can_sum_are_refused() -> None:
    name = "model.layers.0.mlp.down_proj.weight"
    with pytest.raises(ExportError, match=r"66312 inputs.*int4"):
        check_quantization(Quantization("int8"), {name: (8, 66_312)}, is_tied=False, ready=False)
    check_quantization(Quantization("int8"), {name: (8, 66_311)}, is_tied=False, ready=False)


def test_a_tied_embedding_is_not_quantised_without_its_lm_head(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    request = ExportRequest(
        str(checkpoint("tied")), tmp_path, quantize="int8", quantize_embedding=True, quantize_lm_head=False
    )
    with pytest.raises(ExportError, match="tied"):
        export(request)


@pytest.mark.parametrize(
    "quantization",
    [7, {"method": "int3"}, {"method": "int8", "group_size": None, "lm_head": True, "embedding": False}],
)
def test_a_damaged_record_of_the_quantisation_is_told(
    quantization: Any, quantized_artifact: Callable[..., Path], tmp_path: Path
) -> None:
    folder = copy_of(quantized_artifact("gqa", quantize="int8"), tmp_path)
    edit_json(folder / MANIFEST, lambda data: data.update(quantization=quantization))
    with pytest.raises(ArtifactError, match="damaged"):
        Artifact.open(folder)


# What is counted.


@pytest.mark.parametrize(("variant", "head"), [("gqa", 0), ("tied", 0)])
def test_bytes_are_those_of_the_integers(
    variant: str, head: int, quantized_artifact: Callable[..., Path]
) -> None:
    vocab = 301 * 64
    for options, weight_bytes, scales in (
        ({"quantize": "int8"}, 1.0, 4 * (GQA["layers"] * (128 + 64 + 192 + 64) + 301)),
        ({"quantize": "int4"}, 0.5, 0),
    ):
        folder = quantized_artifact(variant, **options)
        artifact = Artifact.open(folder)
        counted = CountedShape.of(artifact)
        assert counted.linear == LINEAR
        assert counted.quantized == LINEAR + vocab
        assert counted.vectors == 7 * 64
        if scales:
            assert counted.quantized_bytes == (LINEAR + vocab) * weight_bytes + scales
        else:  # a scale of four bytes and half a byte of zero point for 32 weights; odd ones are padded
            least = (LINEAR + vocab) * (0.5 + 4.5 / 32)
            assert least <= counted.quantized_bytes <= least * 1.01
        assert counted.step_weight_bytes(4) == counted.quantized_bytes + 7 * 64 * 4
        shape = ModelShape.of(folder)
        parameters = LINEAR + vocab * (2 if variant == "gqa" else 1) + 7 * 64
        assert (shape.parameters, shape.intermediate) == (parameters, 96)
        assert shape.quantized_bytes == sum(tensor.nbytes for tensor in artifact.tensors.values())


def test_a_plan_says_that_it_is_quantised(quantized_artifact: Callable[..., Path]) -> None:
    folder = quantized_artifact("gqa", quantize="int8")
    ended = cleave("plan", folder, "--memory", "64MiB", "--json")
    figures = json.loads(ended.out)
    assert figures["quantized"]
    assert figures["weights_bytes"] == sum(tensor.nbytes for tensor in Artifact.open(folder).tensors.values())
    refused = cleave("plan", folder, "--memory", "64MiB", "--dtype", "float16")
    assert refused.code == 2
    assert "quantised" in refused.err


@pytest.mark.parametrize("method", ["int8", "int4"])
def test_compare_holds_it_against_its_own_weights(
    method: str, checkpoint: Callable[[str], Path], quantized_artifact: Callable[..., Path]
) -> None:
    folder = quantized_artifact("gqa", quantize=method)
    ended = cleave("compare", folder, "--checkpoint", checkpoint("gqa"), "--json")
    assert ended.code == 0, ended.out
    (found,) = json.loads(ended.out)["comparisons"]
    assert found["tolerance"] == 0.08
