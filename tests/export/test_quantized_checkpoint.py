"""GPTQ and AWQ checkpoints, from Hugging Face format to logits: against transformers with plain weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from checkpoints import make_checkpoint
from command import cleave
from packed import LINEAR, Packing, pack_checkpoint
from transformers import AutoModelForCausalLM

from cleave.export.artifact import WEIGHTS, Artifact
from cleave.export.exporter import ExportRequest, export
from cleave.export.layerwise import Layerwise
from cleave.export.shape import ModelShape
from cleave.export.tensorfile import read_header

LENGTHS = (17, 1, 30)
EXACT = 1e-5
"""Of |error| / |logits| where products are of floats, as transformers' are."""
AS_RUN = 0.1
"""The same where activations are rounded to 8 bits too, as they are when the model is served: 0.04 to 0.05
with random weights. A matrix in the wrong layout gives 1 and more."""


def transformers_logits(folder: Path, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    rows = []
    with torch.no_grad():
        for sequence in np.split(tokens, np.cumsum(LENGTHS)[:-1]):
            rows.append(model.eval()(torch.from_numpy(sequence)[None]).logits[0].numpy())
    return np.concatenate(rows)


def artifact_logits(
    folder: Path, tokens: npt.NDArray[np.int64], *, in_floats: bool
) -> npt.NDArray[np.float32]:
    artifact = Artifact.open(folder)
    graph = artifact.batchful_graph()
    if in_floats:
        for node in graph.graph.node:
            for attribute in node.attribute:
                if attribute.name == "accuracy_level":
                    attribute.i = 1
    embeds = artifact.embedding_rows()(tokens).astype(np.float32)
    run = Layerwise(graph, artifact.weight, artifact.manifest.layer_specs, embeds, LENGTHS)
    return run.logits(0, len(tokens))


def relative_error(got: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> float:
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose matrices are of sizes that all packings have."""
    folder = tmp_path_factory.mktemp("plain")
    sizes = {"hidden_size": 128, "intermediate_size": 256, "vocab_size": 304}
    return make_checkpoint(folder, num_hidden_layers=3, **sizes)


CASES = {
    "gptq_32": (Packing(), LINEAR),
    "gptq_symmetric_64": (Packing(group_size=64, symmetric=True), LINEAR),
    "gptq_v2_128": (Packing(version="gptq_v2", group_size=128), LINEAR),
    "gptq_per_channel": (Packing(group_size=-1), LINEAR),
    "gptq_act_order": (Packing(act_order=True), LINEAR),
    "gptq_lm_head_too": (Packing(act_order=True), (*LINEAR, "lm_head")),
    "gptq_one_kind": (Packing(), ("down_proj",)),
    "awq_32": (Packing("awq", "gemm"), LINEAR),
    "awq_128": (Packing("awq", "GEMM", 128), LINEAR),
}


@pytest.mark.parametrize("case", CASES)
def test_logits(plain: Path, tmp_path: Path, case: str) -> None:
    packing, only = CASES[case]
    packed, truth = pack_checkpoint(plain, tmp_path, packing, only=only)
    manifest = export(ExportRequest(str(packed), tmp_path / "artifact", check=False))
    assert manifest.quantization is not None
    assert manifest.quantization.method == "int4"
    quantised = {name for tensor in manifest.quantization.tensors for name, _ in tensor.members}
    count = 3 * len([name for name in only if name != "lm_head"]) + ("lm_head" in only)
    assert len(quantised) == count
    orders = {name for name in read_header(tmp_path / "artifact" / WEIGHTS) if name.endswith(".input_order")}
    # q, k and v share one, gate and up too; o and down have theirs.
    assert len(orders) == (3 * 4 + ("lm_head" in only) if packing.act_order else 0)
    tokens = np.random.default_rng(1).integers(0, 256, sum(LENGTHS))
    expected = transformers_logits(truth, tokens)
    for in_floats, tolerance in ((True, EXACT), (False, AS_RUN)):
        got = artifact_logits(tmp_path / "artifact", tokens, in_floats=in_floats)
        assert relative_error(got, expected) < tolerance


def test_a_family_with_biases_part_by_part(tmp_path: Path) -> None:
    sizes = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 96}
    plain = make_checkpoint(tmp_path / "qwen2", "qwen2", **sizes)
    packed, truth = pack_checkpoint(plain, tmp_path, Packing(act_order=True))
    for part in ("embed_tokens", "batchful", "prefill_batchless", "decode_batchless", "tokenizer"):
        export(ExportRequest(str(packed), tmp_path / "artifact", (part,), check=False))
    tokens = np.random.default_rng(1).integers(0, 256, sum(LENGTHS))
    got = artifact_logits(tmp_path / "artifact", tokens, in_floats=True)
    assert relative_error(got, transformers_logits(truth, tokens)) < EXACT


@pytest.mark.parametrize("case", ["gptq_act_order", "awq_32"])
def test_the_export_checks_itself_against_transformers(plain: Path, tmp_path: Path, case: str) -> None:
    packed, _ = pack_checkpoint(plain, tmp_path, CASES[case][0])
    manifest = export(ExportRequest(str(packed), tmp_path / "artifact", num_layers=2))
    assert manifest.check["relative_error"] < EXACT
    assert manifest.check["integer_operators_relative_error"] < AS_RUN


def test_the_plan_of_a_checkpoint_is_that_of_its_artifact(plain: Path, tmp_path: Path) -> None:
    packed, _ = pack_checkpoint(plain, tmp_path, Packing())
    export(ExportRequest(str(packed), tmp_path / "artifact", check=False))
    before, after = ModelShape.of(packed), ModelShape.of(tmp_path / "artifact")
    assert before.parameters == ModelShape.of(plain).parameters == after.parameters
    for name in ("context", "hidden", "intermediate", "vocab", "dtype"):
        assert getattr(before, name) == getattr(after, name), name
    assert before.quantized_bytes == after.quantized_bytes


def test_compare_reads_the_checkpoint(plain: Path, tmp_path: Path) -> None:
    packed, _ = pack_checkpoint(plain, tmp_path, Packing(act_order=True))
    export(ExportRequest(str(packed), tmp_path / "artifact", check=False))
    ended = cleave("compare", tmp_path / "artifact", "--checkpoint", packed, "--tolerance", "0.2", "--json")
    assert ended.code == 0, ended
