"""The same piece built by Polygraphy, which knows nothing of Cleave."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from command import process

from cleave.export.artifact import Artifact
from cleave.export.pieces import cut
from cleave.runtime.engines.tensorrt_rtx import library
from cleave.runtime.engines.tensorrt_rtx.build import BuildRequest, build_piece
from cleave.runtime.engines.tensorrt_rtx.profiles import Profiles

pytest.importorskip("tensorrt_rtx_libs", reason="TensorRT for RTX has no wheel for this machine")
PROFILES = Profiles(2, 16)

POLYGRAPHY = """
    import json, sys
    import tensorrt_rtx_libs, tensorrt_rtx_bindings
    sys.modules["tensorrt_rtx"] = tensorrt_rtx_bindings  # what the meta package would do
    from polygraphy.backend.trt import Profile, create_network, engine_bytes_from_network
    from polygraphy.backend.trt import network_from_onnx_bytes
    from polygraphy.backend.tensorrt_rtx import create_config_rtx

    model, sizes = open(sys.argv[1], "rb").read(), json.loads(sys.argv[2])
    builder, network, parser = network_from_onnx_bytes(model, strongly_typed=True)
    profiles = []
    for low, optimum, high in sizes:
        profile = Profile()
        for name, width in json.loads(sys.argv[3]).items():
            profile.add(name, (low, width), (optimum, width), (high, width))
        profiles.append(profile)
    config = create_config_rtx(
        builder, network, compute_capabilities=[(8, 9)], profiles=profiles
    )
    tensors = [network.get_input(i) for i in range(network.num_inputs)]
    tensors += [network.get_output(i) for i in range(network.num_outputs)]
    plan = engine_bytes_from_network((builder, network), config)
    print(json.dumps([
        [[tensor.name, tensor.dtype.name, list(tensor.shape)] for tensor in tensors],
        len(bytes(plan)),
        config.num_optimization_profiles,
    ]))
"""


def test_a_piece_has_the_same_tensors_and_size_as_polygraphys_plan(
    artifact: Callable[[str], Path], tmp_path: Path
) -> None:
    piece = cut(Artifact.open(artifact("gqa")).batchful_graph())[1]
    trt = library.load()
    request = BuildRequest(("8.9",), PROFILES)
    plan, described = build_piece(trt, library.make_logger(trt), "middle", piece, request)
    (tmp_path / "middle.onnx").write_bytes(piece.model.SerializeToString())
    widths = {tensor.name: tensor.shape[1] for tensor in described.inputs[: len(piece.inputs)]}
    sizes = [(p.tokens.low, p.tokens.optimum, p.tokens.high) for p in PROFILES]
    ended = process(
        ["-c", textwrap.dedent(POLYGRAPHY), tmp_path / "middle.onnx", json.dumps(sizes), json.dumps(widths)],
        POLYGRAPHY_USE_TENSORRT_RTX="1",
    )
    assert ended.code == 0, ended.err
    tensors, size, profiles = json.loads(ended.out.splitlines()[-1])
    ours = [[item.name, item.dtype, list(item.shape)] for item in (*described.inputs, *described.outputs)]
    assert tensors == ours
    assert profiles == len(PROFILES.buckets) + 1
    assert abs(size - plan.nbytes) < 0.01 * size
