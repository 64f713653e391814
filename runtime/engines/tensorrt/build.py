"""The builder: the batchful graph, weights and all, becomes one plan for the GPU that it is built on."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from cleave.errors import EngineError, reason
from cleave.export.artifact import Artifact
from cleave.plugins.tensorrt.creator import register
from cleave.plugins.tensorrt.graph import with_fields
from cleave.plugins.tensorrt.host import Host, bound
from cleave.runtime.engines.builder import BuildProgress
from cleave.runtime.engines.tensorrt.timing import TimingCache
from cleave.runtime.engines.tensorrt_rtx.library import make_logger
from cleave.runtime.engines.tensorrt_rtx.monitor import STEPS, make_monitor
from cleave.runtime.engines.tensorrt_rtx.plan import EngineDescription, PieceDescription, TensorDescription
from cleave.runtime.engines.tensorrt_rtx.profiles import Profiles, Range

PLAN = "whole"
"""Name of the only plan."""
_GRAPH = "batchful.onnx"


def build(
    trt: Any,
    artifact: Artifact,
    profiles: Profiles,
    capability: str,
    folder: Path,
    timing: TimingCache,
    *,
    progress: BuildProgress | None = None,
) -> EngineDescription:
    """Build into an empty folder, on the GPU of compute capability `capability`.

    Raises EngineError where parser, plugin or builder refuse, and whatever is raised by `progress` or Ctrl-C.
    """
    began = time.perf_counter()
    logger = make_logger(trt)
    creator = register(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    graph = with_fields(artifact.batchful_graph(), artifact.manifest.layer_specs)
    config = builder.create_builder_config()
    # float32 means float32: the same tokens as the other engines, not those of a 10-bit mantissa.
    config.clear_flag(trt.BuilderFlag.TF32)
    monitor = make_monitor(trt, PLAN, progress)
    config.progress_monitor = monitor
    timing.attach(config)
    host = Host()
    with bound(host), host.serving(None):  # what a plugin refuses is raised here
        # The path tells where the weights are that the graph points to.
        if not parser.parse(graph.SerializeToString(), str(artifact.folder / _GRAPH)):
            errors = [parser.get_error(index).desc() for index in range(parser.num_errors)]
            raise EngineError(
                f"the ONNX parser of TensorRT {trt.__version__} does not take this model: "
                f"{reason(Exception('; '.join(errors)))}. Use the engine kind inductor"
            )
        for profile in profiles:
            config.add_optimization_profile(
                _profile(builder, artifact.manifest.hidden_size, profile.tokens, profile.rows)
            )
        plan = builder.build_serialized_network(network, config)
        if monitor.raised is not None:
            raise monitor.raised
        if plan is None:
            said = reason(Exception(logger.errors[-1])) if logger.errors else "it does not say why"
            raise EngineError(f"TensorRT {trt.__version__} cannot build this model: {said}")
    timing.keep(config)
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    whole = PieceDescription(
        PLAN,
        int(plan.nbytes),
        time.perf_counter() - began,
        *(tuple(map(_described, side)) for side in (inputs, outputs)),
    )
    (folder / whole.file).write_bytes(plan)
    engine = EngineDescription(str(trt.__version__), (capability,), profiles, (whole,))
    engine.write(folder)
    del creator
    if progress is not None:
        progress(PLAN, STEPS, STEPS)
    return engine


def _profile(builder: Any, hidden: int, tokens: Range, rows: Range) -> Any:
    profile = builder.create_optimization_profile()
    profile.set_shape(
        "inputs_embeds", *((size, hidden) for size in (tokens.low, tokens.optimum, tokens.high))
    )
    profile.set_shape("logit_rows", *((size,) for size in (rows.low, rows.optimum, rows.high)))
    return profile


def _described(tensor: Any) -> TensorDescription:
    return TensorDescription(tensor.name, tensor.dtype.name, tuple(tensor.shape))
