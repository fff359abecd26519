"""For numba kernels: memory without counted references.

numba counts a reference whenever an array is passed on, also to functions that it has inlined: in a loop over rows or
bytes that takes longer than all the rest. A kernel that calls others in its loop gives them a `pointer`.
"""

from __future__ import annotations

from typing import Any

from numba import config, types
from numba.extending import intrinsic


def _pointer(typing: Any, array: Any) -> Any:
    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return context.make_array(signature.args[0])(context, builder, args[0]).data

    return types.CPointer(array.dtype)(array), code  # type: ignore[no-untyped-call]


def _flat(array: Any) -> Any:
    return array.reshape(-1)


pointer: Any = _flat if config.DISABLE_JIT else intrinsic(_pointer)  # type: ignore[attr-defined]
"""The memory of a contiguous array, to be indexed from 0 on, flat and unchecked, as long as the array is there."""
