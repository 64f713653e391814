"""A plan on the GPU: the deserialised engine, and one execution context for each profile."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cleave.errors import EngineError, reason
from cleave.runtime.engines.tensorrt_rtx.plan import PieceDescription
from cleave.runtime.engines.tensorrt_rtx.profiles import Profiles


class Plan:
    """One of the three plans, ready to run. The middle one runs once for each layer between two cuts."""

    library_name = "TensorRT for RTX"

    def __init__(self, trt: Any, logger: Any, runtime: Any, path: Path, described: PieceDescription) -> None:
        """Deserialise a plan. Raises EngineError where this GPU, driver or library cannot run it."""
        self._trt, self._logger = trt, logger
        self.name = described.name
        serialised = path.read_bytes()
        self._engine = runtime.deserialize_cuda_engine(serialised)
        if self._engine is None:
            raise EngineError(
                f"{self.library_name} {trt.__version__} cannot load {path.name}: "
                f"{_why(trt, logger, runtime, serialised)}; build the engine again on this machine"
            )
        self._check(path, described)
        self._runtime_cache: Any = None
        self._contexts: dict[int, _Context] = {}

    @property
    def scratch_bytes(self) -> int:
        """Device memory that a run of any profile needs for itself."""
        return int(self._engine.device_memory_size_v2)

    def context(self, number: int, profiles: Profiles, scratch: tuple[int, int], stream: int) -> _Context:
        """The context of profile `number`: made when first asked for, with its profile chosen.

        `scratch` is address and size of device memory that no other work uses at the same time.
        """
        if number not in self._contexts:
            is_bucket = number != profiles.prefill
            context = _Context(self._logger, self.name, self._engine, self._configured(is_bucket=is_bucket))
            context.choose(number, scratch, stream)
            self._contexts[number] = context
        return self._contexts[number]

    def close(self) -> None:
        """Give back what TensorRT holds: contexts before their engine."""
        self._contexts.clear()
        self._runtime_cache = None
        self._engine = None

    def _configured(self, *, is_bucket: bool) -> Any:
        """How contexts run. Kernels that are compiled on the GPU are shared by all contexts of the plan."""
        trt = self._trt
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        # A bucket has one shape, and its launches are captured once: the kernels have to be the final ones.
        # Prefill comes in any size: it starts with kernels for all sizes, and better ones are compiled
        # meanwhile.
        strategies = trt.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = (
            strategies.EAGER if is_bucket else strategies.LAZY
        )
        # The whole step is captured with attention in it; a graph for each piece would be in the way.
        config.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED
        if self._runtime_cache is None:
            self._runtime_cache = config.create_runtime_cache()
        config.set_runtime_cache(self._runtime_cache)
        return config

    def _check(self, path: Path, described: PieceDescription) -> None:
        """The plan is what engine.json says: names, types and shapes."""
        engine, modes = self._engine, self._trt.TensorIOMode
        found: dict[Any, dict[str, tuple[str, tuple[int, ...]]]] = {modes.INPUT: {}, modes.OUTPUT: {}}
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            kind = engine.get_tensor_dtype(name).name, tuple(engine.get_tensor_shape(name))
            found[engine.get_tensor_mode(name)][name] = kind
        for mode, tensors in ((modes.INPUT, described.inputs), (modes.OUTPUT, described.outputs)):
            expected = {tensor.name: (tensor.dtype, tensor.shape) for tensor in tensors}
            if found[mode] != expected:
                differing = sorted(
                    name for name in {*found[mode], *expected} if found[mode].get(name) != expected.get(name)
                )
                raise EngineError(
                    f"{path} is not the plan that engine.json speaks of: {', '.join(differing)} differ; "
                    "build the engine again"
                )


class _Context:
    """An execution context that keeps to one profile."""

    def __init__(self, logger: Any, piece: str, engine: Any, config: Any) -> None:
        self._logger, self._piece = logger, piece
        self._context = engine.create_execution_context(config)
        if self._context is None:
            self._fail("cannot make an execution context")
        self._sizes: dict[str, tuple[int, ...]] = {}

    def choose(self, profile: int, scratch: tuple[int, int], stream: int) -> None:
        """Choose the profile, once, and give the context its scratch memory."""
        if not self._context.set_optimization_profile_async(profile, stream):
            self._fail(f"does not take profile {profile}")
        self._context.set_device_memory(*scratch)

    def is_capturable(self, stream: int) -> bool:
        """Whether a run can be part of a CUDA graph. Shapes and addresses must have been set."""
        return bool(self._context.is_stream_capturable(stream))

    def run(self, sizes: Mapping[str, tuple[int, ...]], addresses: Mapping[str, int], stream: int) -> None:
        """Enqueue the piece: shapes of the inputs that change, then an address for every tensor.

        Raises EngineError for what TensorRT refuses.
        """
        for name, size in sizes.items():
            if self._sizes.get(name) != size:
                if not self._context.set_input_shape(name, size):
                    self._fail(f"does not take {name} {list(size)}")
                self._sizes[name] = size
        for name, address in addresses.items():
            if not self._context.set_tensor_address(name, address):
                self._fail(f"does not take an address for {name}")
        if not self._context.execute_async_v3(stream):
            self._fail("cannot run")

    def _fail(self, what: str) -> None:
        errors = self._logger.errors
        said = f": {reason(Exception(errors[-1]))}" if errors else ""
        raise EngineError(f"the {self._piece} plan {what}{said}")


def _why(trt: Any, logger: Any, runtime: Any, serialised: bytes) -> str:
    """Why a plan cannot be loaded: what the library says of its validity, else its last error."""
    if not hasattr(runtime, "get_engine_validity"):  # TensorRT itself has it in newer versions
        return reason(Exception(logger.errors[-1])) if logger.errors else "it does not say why"
    validity, diagnostics = runtime.get_engine_validity(serialised)
    known = trt.EngineInvalidityDiagnostics.__members__.items()
    names = [name.lower().replace("_", " ") for name, flag in known if int(diagnostics) & int(flag)]
    if validity != trt.EngineValidity.VALID and names:
        return ", ".join(names)
    return reason(Exception(logger.errors[-1])) if logger.errors else "it does not say why"
