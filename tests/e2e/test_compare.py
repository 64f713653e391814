"""`cleave compare`: a sound artifact agrees, and one weight that is 2 % off is found and named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from cleave.__main__ import application
from cleave.errors import CompareError, EngineError
from cleave.export.artifact import WEIGHTS, Artifact, digest_file
from cleave.runtime.compare.difference import compare_traces, worst_row
from cleave.runtime.compare.engine_run import trace_engine
from cleave.runtime.compare.suspects import suspects
from cleave.runtime.compare.tokens import tokens_for
from cleave.runtime.compare.trace import Place, Trace, places
from cleave.runtime.compare.truth import trace_transformers
from cleave.runtime.compare.variant import Variant

LAYERS = 3
COMES_FROM = {
    "q_proj": "q",
    "q_norm": "q",
    "k_proj": "k",
    "k_norm": "k",
    "v_proj": "v",
    "input_layernorm": "q",
    "o_proj": "residual",
    "post_attention_layernorm": "residual",
    "gate_proj": "residual",
    "up_proj": "residual",
    "down_proj": "residual",
}
"""Where an error in a weight is first seen."""


def expected_place(tensor: str) -> str:
    parts = tensor.split(".")
    if "layers" in parts:
        return f"layer {parts[2]}: {COMES_FROM[parts[-2]]}"
    return "embedding" if "embed_tokens" in parts else "logits"


def altered(folder: Path, to: Path, tensor: str, change: Callable[[np.ndarray], np.ndarray]) -> Path:
    """A copy of an artifact with one tensor changed, and its digest with it."""
    shutil.copytree(folder, to, dirs_exist_ok=True)
    stored = Artifact.open(to, verify=False).tensors[tensor]
    values = np.memmap(to / WEIGHTS, np.float32, "r+", offset=stored.offset, shape=stored.shape)
    values[...] = change(np.array(values))
    values.flush()
    manifest = json.loads((to / "manifest.json").read_text())
    manifest["files"][WEIGHTS]["sha256"] = digest_file(to / WEIGHTS).sha256
    (to / "manifest.json").write_text(json.dumps(manifest))
    return to


def two_percent_larger(values: np.ndarray) -> np.ndarray:
    return values * np.float32(1.02)


def two_percent_noise(values: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(0).standard_normal(values.shape, np.float32)
    return values * (1 + np.float32(0.02) * noise)


# Not qwen3 with two_percent_larger: its norms of q and k take a factor of the whole projection out again.
@pytest.mark.parametrize(
    ("variant", "change"),
    [("gqa", two_percent_larger), ("gqa", two_percent_noise), ("qwen3", two_percent_noise)],
)
def test_a_weight_that_is_two_percent_off_is_found_in_every_layer_and_of_every_kind(
    variant: str,
    change: Callable[[np.ndarray], np.ndarray],
    checkpoint: Callable[[str], Path],
    artifact: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    sound = Artifact.open(artifact(variant))
    tokens = tokens_for(sound.manifest, None)
    truth = trace_transformers(checkpoint(variant), sound, tokens)
    found, blamed = {}, {}
    for tensor in sound.tensors:
        folder = altered(sound.folder, tmp_path, tensor, change)
        model = Variant(folder, "onnxruntime", "cpu").load(len(tokens))
        forced = trace_engine(model, LAYERS, tokens, truth)
        model.close()
        shutil.rmtree(folder)
        comparison = compare_traces(truth, forced, forced, ("altered", "transformers"), "float32", 1e-4)
        found[tensor] = str(comparison.first)
        blamed[tensor] = suspects(sound, comparison.first) if comparison.first else ()
    assert found == {tensor: expected_place(tensor) for tensor in sound.tensors}
    assert all(tensor in names for tensor, names in blamed.items())


@pytest.mark.parametrize(
    "variant",
    ["gqa", "tied", "one_layer", "attention_bias", "mistral_window", "qwen2_mixed_windows", "qwen3"],
)
def test_a_sound_artifact_agrees_with_transformers(
    variant: str, checkpoint: Callable[[str], Path], artifact: Callable[[str], Path]
) -> None:
    result = cleave("compare", artifact(variant), "--checkpoint", checkpoint(variant), "--json")
    assert result.exit_code == 0
    comparison = json.loads(result.stdout)["comparisons"][0]
    assert comparison["agrees"]
    assert comparison["first_divergence"] is None
    assert comparison["same_tokens"] == comparison["tokens"] == 64
    layers = 1 if variant == "one_layer" else LAYERS
    assert [error["place"] for error in comparison["errors"]] == [str(place) for place in places(layers)]


def test_the_table_names_the_first_divergence_and_its_weights_and_the_exit_code_is_1(
    checkpoint: Callable[[str], Path], artifact: Callable[[str], Path], tmp_path: Path
) -> None:
    tensor = "model.layers.2.mlp.down_proj.weight"
    folder = altered(artifact("gqa"), tmp_path / "altered", tensor, two_percent_larger)
    result = cleave("compare", folder, "--checkpoint", checkpoint("gqa"))
    assert result.exit_code == 1
    words = " ".join(result.stdout.split())
    assert "first divergence at layer 2: residual" in words
    assert tensor in words


def test_attention_backends_are_compared_with_each_other_without_a_checkpoint(
    artifact: Callable[[str], Path],
) -> None:
    result = cleave("compare", artifact("gqa"), "--attention", "cpu,onnx,reference", "--json")
    assert result.exit_code == 0
    compared = json.loads(result.stdout)["comparisons"]
    assert [(item["engine"], item["reference"]) for item in compared] == [
        ("onnxruntime + onnx", "onnxruntime + cpu"),
        ("onnxruntime + reference", "onnxruntime + cpu"),
    ]


def test_observing_an_engine_does_not_change_what_it_computes(artifact: Callable[[str], Path]) -> None:
    tokens = list(range(40))
    model = Variant(artifact("gqa"), "onnxruntime", "cpu").load(len(tokens))
    logits = Place(LAYERS, "logits")
    watched = trace_engine(model, LAYERS, tokens)
    model.engine.observe(None)
    again = trace_engine(model, LAYERS, tokens)
    model.close()
    assert np.array_equal(watched[logits], again[logits])


def test_an_attention_backend_that_is_wrong_is_blamed_and_not_the_layers_after_it() -> None:
    truth, got = filled(1.0), filled(1.0)
    got[Place(1, "attention")][5] *= 1.02
    comparison = compare_traces(truth, got, got, ("a", "b"), "float32", 1e-4)
    assert comparison.diverging == (Place(1, "attention"),)


def test_what_follows_from_a_residual_is_not_blamed() -> None:
    truth, got = filled(1.0), filled(1.0)
    for place in (Place(0, "residual"), Place(1, "q"), Place(1, "v"), Place(2, "k")):
        got[place][...] *= 1.5
    comparison = compare_traces(truth, got, got, ("a", "b"), "float32", 1e-4)
    assert comparison.first == Place(0, "residual")
    assert comparison.diverging == (Place(0, "residual"), Place(2, "k"))


def test_errors_that_add_up_end_to_end_do_not_agree() -> None:
    truth, forced, free = filled(1.0), filled(1.0), filled(1.0)
    free[Place(LAYERS, "logits")][...] *= 1.01
    comparison = compare_traces(truth, forced, free, ("a", "b"), "float32", 1e-4)
    assert comparison.first is None
    assert not comparison.agrees


def test_a_value_that_is_not_a_number_is_an_infinite_error() -> None:
    assert worst_row(np.array([[0.0, np.nan]], np.float32), np.ones(1, np.float32)) == float("inf")


def test_a_row_of_almost_nothing_does_not_decide() -> None:
    error = np.full((3, 4), 1e-6, np.float32)
    assert worst_row(error, np.array([2.0, 2.0, 1e-9], np.float32)) == pytest.approx(1e-6)


def filled(value: float) -> Trace:
    trace = Trace(LAYERS, 8)
    generator = np.random.default_rng(0)
    for place in places(LAYERS):
        trace.put(place, 0, value * generator.standard_normal((8, 16)).astype(np.float32))
    return trace


def cleave(*arguments: object):
    return CliRunner().invoke(application(), [str(argument) for argument in arguments])


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        (["--engines", "fast"], EngineError, "there is no engine kind fast; there are: onnxruntime"),
        (["--attention", "flash"], Exception, "there is no attention backend flash"),
        ([], CompareError, "nothing to be compared with"),
        (["--tolerance", "3", "--attention", "cpu,onnx"], CompareError, "tolerance is 3"),
        (["--checkpoint", "nowhere"], CompareError, "it has no config.json"),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: list[str], error: type[Exception], says: str, artifact: Callable[[str], Path]
) -> None:
    result = cleave("compare", artifact("gqa"), *arguments)
    assert isinstance(result.exception, error)
    assert says in str(result.exception)


def test_a_checkpoint_of_another_shape_is_refused(
    artifact: Callable[[str], Path], demo_checkpoint: Path
) -> None:
    result = cleave("compare", artifact("gqa"), "--checkpoint", demo_checkpoint)
    assert "is another model" in str(result.exception)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[1, 2, 999999]", "token id 999999; ids of this model go from 0 to 300"),
        ("one two", "is not a list of token ids"),
        ("[1, 2.5]", "is not a list of token ids"),
        ("[true]", "is not a list of token ids"),
        ("", "has 0 token ids"),
        ("1 " * 513, "has 513 token ids; give 1 to 512"),
    ],
)
def test_a_file_of_tokens_is_checked(
    text: str, says: str, artifact: Callable[[str], Path], tmp_path: Path
) -> None:
    (tmp_path / "tokens").write_text(text)
    with pytest.raises(CompareError, match="tokens") as caught:
        tokens_for(Artifact.open(artifact("gqa")).manifest, tmp_path / "tokens")
    assert says in str(caught.value)


def test_tokens_may_be_json_or_words(artifact: Callable[[str], Path], tmp_path: Path) -> None:
    manifest = Artifact.open(artifact("gqa")).manifest
    for text in ("[3, 4, 5]", "3 4\n5"):
        (tmp_path / "tokens").write_text(text)
        assert tokens_for(manifest, tmp_path / "tokens") == [3, 4, 5]
