"""What quantising costs: measured as torch measures it, and the gate before the artifact is published."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from checkpoints import make_checkpoint
from command import assert_one_sentence, cleave, contents
from damage import copy_of
from packed import Packing, pack_checkpoint
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from cleave.errors import ExportError
from cleave.export.artifact import read_manifest
from cleave.export.calibration import (
    LEAST_TOKENS,
    MOST_TOKENS,
    calibration_text,
    calibration_windows,
)
from cleave.export.exporter import ExportRequest, export
from cleave.export.quality import MAX_KL, Quality
from cleave.export.quantization import Quantization
from cleave.kvcache.step import Chunk
from cleave.runtime.model import Model, ModelOptions

INT8 = Quantization("int8")
TEXT = "\n\n".join(f"{'A line of some words. ' * count}" for count in (1, 3, 9, 27))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text(TEXT)
    return file


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    return make_checkpoint(folder, num_hidden_layers=2, intermediate_size=128, vocab_size=304)


def broken(plain: Path, folder: Path) -> Path:
    """A copy of the checkpoint that computes no numbers."""
    model = copy_of(plain, folder)
    tensors = load_file(model / "model.safetensors")
    tensors["model.norm.weight"] *= torch.nan
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    return model


def windows_of(model: Path, text: str) -> list[npt.NDArray[np.int64]]:
    return calibration_windows(text, model / "tokenizer.json", context=512, vocab=304)


def transformers_logits(folder: Path, windows: list[npt.NDArray[np.int64]]) -> list[torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return [model(torch.from_numpy(window)[None]).logits[0].double() for window in windows]


def engine_logits(artifact: Path, windows: list[npt.NDArray[np.int64]]) -> list[torch.Tensor]:
    """By the engine and the attention server that serve the model."""
    model = Model(artifact, ModelOptions(max_sequences=2))
    logits = []
    try:
        for number, window in enumerate(windows):
            model.attention.open(number)
            model.attention.plan([Chunk(number, 0, len(window))])
            rows = model.engine.run(window, np.arange(len(window)), model.attention)
            logits.append(torch.from_numpy(rows.copy()).double())
            model.attention.commit()
            model.attention.close(number)
    finally:
        model.close()
    return logits


def perplexity(logits: list[torch.Tensor], windows: list[npt.NDArray[np.int64]]) -> float:
    """Of every token that follows at least two others."""
    losses = [
        torch.nn.functional.cross_entropy(rows[1:-1], torch.from_numpy(window[2:]), reduction="none")
        for rows, window in zip(logits, windows, strict=True)
    ]
    return math.exp(torch.cat(losses).mean())


def divergence(reference: list[torch.Tensor], logits: list[torch.Tensor]) -> torch.Tensor:
    """KL(reference || logits) of each row but the first of each window."""
    return torch.cat(
        [
            torch.nn.functional.kl_div(
                rows[1:].log_softmax(1), wanted[1:].log_softmax(1), reduction="none", log_target=True
            ).sum(1)
            for wanted, rows in zip(reference, logits, strict=True)
        ]
    )


@pytest.mark.parametrize("method", ["int8", "int4"])
def test_the_figures_are_those_of_torch_over_the_serving_engine(
    plain: Path, tmp_path: Path, text: Path, method: str
) -> None:
    request = ExportRequest(
        str(plain), tmp_path / "artifact", check=False, quantize=method, calibration=text, force=True
    )
    quality = export(request).quality
    windows = windows_of(plain, TEXT)
    reference = transformers_logits(plain, windows)
    got = engine_logits(tmp_path / "artifact", windows)
    kl = divergence(reference, got)
    assert quality["text"] == str(text)
    assert quality["tokens"] == len(kl)
    assert quality["reference_perplexity"] == pytest.approx(perplexity(reference, windows), rel=1e-4)
    # An activation that is rounded the other way, for the sake of one bit, shows in the third digit.
    assert quality["perplexity"] == pytest.approx(perplexity(got, windows), rel=1e-2)
    assert quality["kl"] == pytest.approx(float(kl.mean()), rel=2e-2)
    assert quality["kl_99"] == pytest.approx(float(kl.quantile(0.99)), rel=0.1)
    assert quality["kl_error"] == pytest.approx(float(kl.std() / len(kl) ** 0.5), rel=0.1)
    ratio = quality["perplexity"] / quality["reference_perplexity"]
    assert quality["perplexity_ratio"] == pytest.approx(ratio)
    assert quality["max_kl"] == MAX_KL
    assert quality["forced"]
    assert read_manifest(tmp_path / "artifact").quality == quality


def test_a_checkpoint_that_is_quantised_has_a_perplexity_alone(
    plain: Path, tmp_path: Path, text: Path
) -> None:
    packed, truth = pack_checkpoint(plain, tmp_path, Packing(act_order=True))
    quality = export(ExportRequest(str(packed), tmp_path / "out", check=False, calibration=text)).quality
    windows = windows_of(plain, TEXT)
    assert set(quality) == {"text", "tokens", "perplexity"}
    assert quality["perplexity"] == pytest.approx(
        perplexity(engine_logits(tmp_path / "out", windows), windows), rel=1e-2
    )
    assert quality["perplexity"] == pytest.approx(
        perplexity(transformers_logits(truth, windows), windows), rel=0.1
    )


def test_the_graph_alone_is_measured_and_other_parts_keep_that(plain: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"check": False, "quantize": "int8", "force": True}
    whole = export(ExportRequest(str(plain), tmp_path / "whole", **options))
    alone = export(ExportRequest(str(plain), tmp_path / "alone", ("batchful",), **options))
    assert whole.quality["tokens"] > LEAST_TOKENS
    assert alone.missing_parts
    assert alone.quality == whole.quality
    after = export(ExportRequest(str(plain), tmp_path / "alone", ("tokenizer",), check=False))
    assert after.quality == whole.quality


# The gate.


@pytest.fixture(scope="module")
def before(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact of the checkpoint, not quantised. Read it, do not change it."""
    folder = tmp_path_factory.mktemp("before")
    export(ExportRequest(str(plain), folder, check=False))
    return folder


@pytest.fixture(params=["no folder", "artifact"])
def refuse(request: pytest.FixtureRequest, plain: Path, before: Path, tmp_path: Path) -> Callable[..., None]:
    """Export what is refused, into a new folder and over an artifact, which has to stay as it is."""
    output = tmp_path / "deep" / "output"
    if request.param == "artifact":
        copy_of(before, output)

    def refuse(*words: str, **options: Any) -> None:
        there = contents(tmp_path / "deep")
        with pytest.raises(ExportError) as error:
            export(ExportRequest(str(plain), output, **({"check": False, "quantize": "int4"} | options)))
        assert_one_sentence(str(error.value), "", *words)
        assert contents(tmp_path / "deep") == there

    return refuse


def test_too_far_from_float32(refuse: Callable[..., None]) -> None:
    refuse("too far from float32", "nats a token", "allowed 0.001", "--force", max_kl=0.001)


def test_a_model_that_gives_no_numbers(plain: Path, tmp_path: Path) -> None:
    model = broken(plain, tmp_path / "model")
    with pytest.raises(ExportError) as error:
        export(ExportRequest(str(model), tmp_path / "out", check=False, quantize="int8"))
    assert_one_sentence(str(error.value), "", "nan", "--force")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("max_kl", [-1.0, math.nan, math.inf])
def test_a_limit_that_is_none(refuse: Callable[..., None], max_kl: float) -> None:
    refuse("max_kl", "0 or more", max_kl=max_kl)


@pytest.mark.parametrize("option", [{"max_kl": 1.0}, {"force": True}, {"calibration": "text.txt"}])
def test_options_where_nothing_is_measured(refuse: Callable[..., None], option: dict[str, Any]) -> None:
    (name,) = option
    refuse(name, "--quantize", quantize=None, **option)
    refuse(name, "--no_quality", quality=False, **option)


def test_a_limit_without_a_reference(plain: Path, tmp_path: Path) -> None:
    packed, _ = pack_checkpoint(plain, tmp_path, Packing())
    with pytest.raises(ExportError) as error:
        export(ExportRequest(str(packed), tmp_path / "out", max_kl=0.1))
    assert_one_sentence(str(error.value), "max_kl", "quantised already", "--max_kl")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", ("empty", str(LEAST_TOKENS))),
        (b" \n\n\t\n", ("empty", str(LEAST_TOKENS))),
        (b"\xff\xfeA\x00", ("not UTF-8", "byte 0")),
        (b"text, and then\0" * 400, ("is binary", "NUL")),
        (b"too short", ("has 9 tokens", str(LEAST_TOKENS))),
        (b"a\n\nb\n\n" * 400, ("has 0 tokens", str(LEAST_TOKENS))),
        (None, ("cannot be read", "No such file")),
    ],
    ids=["empty", "blank", "not UTF-8", "binary", "short", "short documents", "missing"],
)
def test_a_text_that_cannot_be_used(
    refuse: Callable[..., None], tmp_path: Path, data: bytes | None, words: tuple[str, ...]
) -> None:
    file = tmp_path / "calibration.txt"
    if data is not None:
        file.write_bytes(data)
    refuse(*words, calibration=file)


def test_a_folder_in_place_of_a_text(refuse: Callable[..., None], tmp_path: Path) -> None:
    refuse("cannot be read", "directory", calibration=tmp_path)


def test_the_table_on_the_terminal(plain: Path, tmp_path: Path, text: Path) -> None:
    options = ("--model", plain, "--no_check", "--quantize", "int8", "--calibration", text)
    ended = cleave("export", *options, "--output_dir", tmp_path / "a", "--max_kl", "1")
    assert ended.code == 0, ended.err
    quality = json.loads((tmp_path / "a" / "manifest.json").read_text())["quality"]
    for figure in ("perplexity", f"{quality['kl']:.5f}", f"{quality['perplexity_ratio']:.4f}", "allowed 1"):
        assert figure in ended.err
    cleave("export", *options, "--output_dir", tmp_path / "b", "--max_kl", "1e-9").refused("--force")
    assert not (tmp_path / "b").exists()
    forced = cleave("export", *options, "--output_dir", tmp_path / "c", "--max_kl", "1e-9", "--force")
    assert forced.code == 0, forced.err
    assert "forced" in forced.err
    packed, _ = pack_checkpoint(plain, tmp_path, Packing())
    taken = cleave("export", "--model", packed, "--no_check", "--output_dir", tmp_path / "d")
    assert taken.code == 0, taken.err
    assert "no float32 form" in taken.err


# The numbers themselves, and the text.


def test_the_limit_is_met_exactly() -> None:
    Quality("", 1, 2.0, 2.0, kl=0.1).check(0.1, INT8)
    with pytest.raises(ExportError):
        Quality("", 1, 2.0, 2.0, kl=0.1001).check(0.1, INT8)
    with pytest.raises(ExportError):
        Quality("", 1, 2.0, 2.0, kl=math.nan).check(0.1, INT8)
    with pytest.raises(ExportError):
        Quality("", 1, math.inf).check(0.1, INT8)


@pytest.mark.parametrize(
    ("quantization", "advice"),
    [
        (INT8, "leave --quantize out, leave lm_head out (--no_quantize_lm_head), or export it with --force"),
        (Quantization("int8", lm_head=False), "leave --quantize out, or export it with --force"),
        (Quantization("int4", 32, lm_head=False), "take --quantize int8, or export it with --force"),
        (
            Quantization("int4", 128),
            "take --quantize int8, take a smaller --group_size, leave lm_head out (--no_quantize_lm_head), "
            "or export it with --force",
        ),
    ],
)
def test_what_is_advised_comes_nearer_to_float32(quantization: Quantization, advice: str) -> None:
    with pytest.raises(ExportError) as error:
        Quality("", 1, 3.0, 2.0, kl=1.0).check(0.1, quantization)
    assert str(error.value).endswith(f"nothing was exported: {advice}")


def test_a_model_that_is_broken_in_float32_too_is_not_said_to_be_far_from_it() -> None:
    with pytest.raises(ExportError) as error:
        Quality("", 1, math.nan, math.nan, kl=math.nan).check(0.1, INT8)
    assert_one_sentence(str(error.value), "the model has a perplexity of nan, in float32 too", "--force")


def test_a_manifest_is_json_whatever_a_model_computes(plain: Path, tmp_path: Path, text: Path) -> None:
    model = broken(plain, tmp_path / "model")
    options = ("--quantize", "int8", "--calibration", text, "--no_check", "--force")
    ended = cleave("export", "--model", model, "--output_dir", tmp_path / "out", *options)
    assert ended.code == 0, ended.err
    assert "nan" in ended.err
    assert "forced" in ended.err

    def no_json(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    written = json.loads((tmp_path / "out" / "manifest.json").read_text(), parse_constant=no_json)
    assert written["quality"]["perplexity"] is None
    assert read_manifest(tmp_path / "out").quality == written["quality"]
    again = cleave(
        "export", "--model", model, "--output_dir", tmp_path / "out", "--export", "tokenizer", "--no_check"
    )
    assert (again.code, "nan" in again.err) == (0, True), again.err


def test_documents_are_windows_of_their_own(plain: Path) -> None:
    tokenizer = Tokenizer.from_file(str(plain / "tokenizer.json"))
    documents = ["one document\nof two lines " * 10, "x", "another one " * 60]
    windows = calibration_windows("\n \n\n".join(documents), plain / "tokenizer.json", context=100, vocab=304)
    kept = [tokenizer.encode(document).ids for document in (documents[0].strip("\n"), documents[2])]
    expected = [ids[start : start + 100] for ids in kept for start in range(0, len(ids), 100)]
    assert [window.tolist() for window in windows] == [ids for ids in expected if len(ids) >= 3]


def test_of_a_long_text_an_even_share_is_taken(plain: Path) -> None:
    text = "\n\n".join(f"{index:05} " + "x" * 94 for index in range(500))
    windows = windows_of(plain, text)
    assert sum(map(len, windows)) == pytest.approx(MOST_TOKENS, rel=0.05)
    tokenizer = Tokenizer.from_file(str(plain / "tokenizer.json"))
    numbers = [int(tokenizer.decode(window[:5].tolist())) for window in windows]
    assert numbers[0] == 0
    assert numbers[-1] > 450
    gaps = np.diff(numbers)
    assert gaps.max() - gaps.min() <= 1


def test_a_token_that_the_embedding_lacks(plain: Path) -> None:
    with pytest.raises(ExportError, match="only 60 rows"):
        calibration_windows(TEXT, plain / "tokenizer.json", context=512, vocab=60)


def test_the_bundled_text_suffices(demo_checkpoint: Path) -> None:
    windows = calibration_windows(
        calibration_text(None), demo_checkpoint / "tokenizer.json", context=4096, vocab=3072
    )
    assert sum(map(len, windows)) == pytest.approx(MOST_TOKENS, rel=0.1)
