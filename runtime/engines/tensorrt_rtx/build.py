"""The builder: the three pieces of an artifact become three plans. Needs neither a GPU nor CUDA."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cleave.errors import EngineError, reason
from cleave.export.pieces import Piece
from cleave.runtime.engines.builder import BuildProgress
from cleave.runtime.engines.tensorrt_rtx import architecture
from cleave.runtime.engines.tensorrt_rtx.library import load, make_logger
from cleave.runtime.engines.tensorrt_rtx.monitor import STEPS, make_monitor
from cleave.runtime.engines.tensorrt_rtx.network import Network
from cleave.runtime.engines.tensorrt_rtx.plan import EngineDescription, PieceDescription, TensorDescription
from cleave.runtime.engines.tensorrt_rtx.profiles import Profiles


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """What plans are built for."""

    compute_capabilities: tuple[str, ...]
    """Such as ("8.6", "8.9", "12.0"); one plan serves all of them."""
    profiles: Profiles


def distinct(pieces: Sequence[Piece]) -> dict[str, Piece]:
    """The pieces that differ, by name: "first", "middle" where there are two layers or more, "last"."""
    middle = {"middle": pieces[1]} if len(pieces) > 2 else {}
    return {"first": pieces[0], **middle, "last": pieces[-1]}


def build(
    pieces: Sequence[Piece], request: BuildRequest, folder: Path, *, progress: BuildProgress | None = None
) -> EngineDescription:
    """Build the plans of what `cut` gives into an empty folder.

    Weights are inputs of the plans, not part of them. Raises EngineError where the parser or the
    builder refuses a piece, and whatever is raised by `progress` or by Ctrl-C, after which the files of
    this build are gone.
    """
    trt = load()
    logger = make_logger(trt)
    written: list[Path] = []
    try:
        described = []
        for name, piece in distinct(pieces).items():
            plan, description = build_piece(trt, logger, name, piece, request, progress=progress)
            written.append(folder / description.file)
            written[-1].write_bytes(plan)
            described.append(description)
        engine = EngineDescription(
            str(trt.__version__), request.compute_capabilities, request.profiles, tuple(described)
        )
        engine.write(folder)
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        raise
    return engine


def build_piece(
    trt: Any,
    logger: Any,
    name: str,
    piece: Piece,
    request: BuildRequest,
    *,
    progress: BuildProgress | None = None,
) -> tuple[memoryview, PieceDescription]:
    """The plan of one piece, and what it is."""
    began = time.perf_counter()
    network = Network(trt, logger, name, piece)
    config = network.builder.create_builder_config()
    # float32 means float32: the same tokens as the other engines, not those of a 10-bit mantissa.
    config.clear_flag(trt.BuilderFlag.TF32)
    # A plan that allocates while it runs could not be captured in a CUDA graph.
    config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    known = architecture.supported(trt)
    capabilities = request.compute_capabilities
    config.num_compute_capabilities = len(capabilities)
    for index, capability in enumerate(capabilities):
        config.set_compute_capability(known[capability], index)
    _add_profiles(network, config, piece, request.profiles)
    monitor = make_monitor(trt, name, progress)
    config.progress_monitor = monitor
    plan = network.builder.build_serialized_network(network.definition, config)
    if monitor.raised is not None:
        raise monitor.raised
    if plan is None:
        raise EngineError(
            f"TensorRT for RTX {trt.__version__} cannot build the {name} piece for "
            f"{', '.join(capabilities)}: {reason(Exception(logger.errors[-1] if logger.errors else ''))}"
        )
    if progress is not None:
        progress(name, STEPS, STEPS)
    seconds = time.perf_counter() - began
    inputs, outputs = (tuple(map(_described, side)) for side in (network.inputs, network.outputs))
    return memoryview(plan), PieceDescription(name, plan.nbytes, seconds, inputs, outputs)


def _add_profiles(network: Network, config: Any, piece: Piece, profiles: Profiles) -> None:
    """One optimisation profile for each of `profiles`, in their order."""
    dynamic = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in piece.model.graph.input
    }
    for number, profile in enumerate(profiles):
        optimisation = network.builder.create_optimization_profile()
        for name, dims in dynamic.items():
            if not any(isinstance(dim, str) for dim in dims):
                continue
            sizes = [profile.dimensions[dim] if isinstance(dim, str) else dim for dim in dims]
            optimisation.set_shape(
                name,
                *(
                    tuple(size if isinstance(size, int) else getattr(size, bound) for size in sizes)
                    for bound in ("low", "optimum", "high")
                ),
            )
        if config.add_optimization_profile(optimisation) != number:
            raise EngineError(
                f"TensorRT for RTX does not take the profile {profile.name} of the {network.name} piece"
            )


def _described(tensor: Any) -> TensorDescription:
    return TensorDescription(tensor.name, tensor.dtype.name, tuple(tensor.shape))
