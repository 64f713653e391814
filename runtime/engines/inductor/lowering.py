"""How Inductor writes `add_linear_`: as a call of torch, without the operator's own Python."""

from __future__ import annotations

import functools
from typing import Any

from torch._inductor import ir
from torch._inductor.lowering import permute, register_lowering
from torch._inductor.virtualized import V

from cleave.runtime.engines.inductor.add_linear import ADD_LINEAR


@functools.cache
def lower_add_linear() -> None:
    """Tell Inductor, once in a process.

    It would call the operator otherwise. That gives the same, but the Python around it takes the host 15 us.
    """
    register_lowering(ADD_LINEAR, type_promotion_kind=None)(_lower)


def _lower(residual: Any, x: Any, weight: Any) -> None:
    _AddProduct(*(ir.ExternKernel.realize_input(value) for value in (residual, x, permute(weight, [1, 0]))))


class _AddProduct(ir.MutatingFirstArgExternKernel):
    """`residual.addmm_(x, matrix)` in what Inductor writes."""

    def __init__(self, residual: Any, x: Any, matrix: Any) -> None:
        inputs = self.unwrap_storage([residual, x, matrix])
        super().__init__(None, ir.NoneLayout(device=residual.get_device()), inputs)
        self.python_kernel_name = "torch.Tensor.addmm_"
        V.graph.mark_buffer_mutated(residual.get_name())
        self.name = V.graph.register_buffer(self)
        V.graph.register_operation(self)
