"""Rows of tables, in the order in which they are sent: one read and one write of each."""

from __future__ import annotations

from torch import Tensor

from besskge_core.ops.gpu.language import (
    constexpr,
    jit,
    n_warps,
    power_of_two,
    tl,
    triton,
)

#: Numbers of a block.
BLOCK = 2048


@jit
def gather_kernel(
    table,
    index,
    out,
    n_row,
    n_lookup,
    width,
    shard_stride,
    row_stride,
    BLOCK_K: constexpr,
    BLOCK_D: constexpr,
):
    """BLOCK_K look-ups of a shard. Grid: blocks of look-ups, shards."""
    shard = tl.program_id(1).to(tl.int64)
    k = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    row = tl.load(index + shard * n_lookup + k, mask=k < n_lookup, other=-1).to(tl.int64)
    is_row = (row >= 0) & (row < n_row)
    source = table + shard * shard_stride + row * row_stride
    target = out + (shard * n_lookup + k) * width
    for start in range(0, width, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        inside = (d < width)[None, :]
        rows = tl.load(
            source[:, None] + d[None, :], mask=is_row[:, None] & inside, other=float("nan")
        )
        tl.store(target[:, None] + d[None, :], rows, mask=(k < n_lookup)[:, None] & inside)


def gather(table: Tensor, index: Tensor) -> Tensor:
    """(L, E, D), (L, K) -> (L, K, D); a row out of range is NaN: to raise would wait for the device."""
    (n_host, n_row, width), n_lookup = table.shape, index.shape[1]
    out = table.new_empty((n_host, n_lookup, width))
    if not out.numel():
        return out
    if table.stride(2) != 1:
        table = table.contiguous()
    block_d = min(power_of_two(width), BLOCK)
    block_k = max(BLOCK // block_d, 1)
    gather_kernel[(triton.cdiv(n_lookup, block_k), n_host)](
        table, index.contiguous(), out, n_row, n_lookup, width, table.stride(0), table.stride(1),
        BLOCK_K=block_k, BLOCK_D=block_d, num_warps=n_warps(block_k * block_d),
    )  # fmt: skip
    return out
