"""Matrix products of chunks, by the quickest route of the device. Shapes: n rows of a chunk, V and K the other dimensions.

On a CPU with AVX-512, oneDNN multiplies a few rows by a large weight two to three times as fast as the BLAS behind ``torch.mm``,
which copies the weight into its own layout at each call (with AVX2 both take the same time). On a GPU half-precision factors
accumulate into fp32.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

LEAST_WORK = 2**20
"""Products of fewer multiplications go through ``torch.mm``: their time is all overhead."""

BLOCK_BYTES = 4 * 2**20
"""Size of the pieces in which a product is added to a matrix on a CPU."""


@cache
def _has_onednn() -> bool:
    """Whether oneDNN is there with kernels made for this processor."""
    return (
        torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    )


def multiplies_quicker(left: Tensor, right: Tensor) -> bool:
    """Whether ``quick_product`` can make left·rightᵀ [n, V] of [n, K] and [V, K], and beats ``torch.mm``."""
    return _through_onednn(left, right, left.numel() * len(right))


def quick_product(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """left·rightᵀ + bias by oneDNN; no gradient flows through it."""
    return torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")


def packs(weight: Tensor) -> bool:
    """Whether ``pack`` takes ``weight``, and products with what it gives are quicker."""
    return _through_onednn(weight, weight, LEAST_WORK)


def pack(weight: Tensor, rows: int) -> Tensor:
    """A copy of ``weight`` [V, K] in oneDNN's own layout, for ``quick_product`` with about ``rows`` rows.

    Without it every product rearranges the weight for itself: as long as the product of 4 to 8 rows, a sixth of that of 64.
    """
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach(), rows)


def _through_onednn(left: Tensor, right: Tensor, multiplications: int) -> bool:
    return (
        multiplications >= LEAST_WORK
        and left.device.type == "cpu"
        and left.dtype == right.dtype == torch.float32
        and left.is_contiguous()
        and (right.is_contiguous() or right.T.is_contiguous())
        and torch.backends.mkldnn.enabled
        and _has_onednn()
    )


def times_transposed(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """left·rightᵀ [n, V] of [n, K] and [V, K], returned in ``dtype`` (at least that of the factors)."""
    if _through_onednn(left, right, left.numel() * len(right)):
        return quick_product(left, right)
    if left.dtype == dtype:
        return left @ right.T
    return torch.mm(left, right.T, out_dtype=dtype)


def add_product_(out: Tensor, left: Tensor, right: Tensor) -> None:
    """out ← out + leftᵀ·right, [V, K] of [n, V] and [n, K]; ``out`` may be wider than the factors (fp32 sums of half products)."""
    if _through_onednn(left, right, left.numel() * right.shape[1]):
        rows = max(1, BLOCK_BYTES // (out.element_size() * out.shape[1]))
        transposed = right.T
        for start in range(0, len(out), rows):
            piece = left[:, start : start + rows].T
            out[start : start + rows] += quick_product(piece, transposed)
    elif left.dtype == out.dtype:
        out.addmm_(left.T, right)
    else:
        torch.addmm(out, left.T, right, out_dtype=out.dtype, out=out)
