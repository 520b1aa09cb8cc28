"""Which of torch's operators PopTorch 3.3 and 3.4 compile, and what is wrong with the others.

The names in `operators.txt` are those for which PopTorch registers a handler (its source, branch
sdk-release-3.4, popart_canonicalization), without overload and trailing underscore. They are the same
for both versions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Optional, Sequence, Tuple

#: With a handler.
HANDLED = frozenset((Path(__file__).parent / "operators.txt").read_text().split())

#: What torch makes of handled operators, or of constants, before a compiler sees them.
PARTS = frozenset(
    {
        "_to_copy", "alias", "empty", "empty_like", "empty_strided", "lift_fresh", "new_empty",
        "scalar_tensor",
    }
)  # fmt: skip

#: What asks about types alone.
ABOUT_TYPES = frozenset({"promote_types", "result_type", "can_cast"})

#: Handlers that always raise.
RAISING = frozenset({"as_strided", "upsample_linear1d", "upsample_trilinear3d"})

#: Results of a size that hangs on values.
DYNAMIC = frozenset(
    {
        "nonzero", "masked_select", "unique_consecutive", "unique_dim", "_unique", "_unique2",
        "argwhere", "repeat_interleave", "masked_scatter",
    }
)  # fmt: skip

#: Computed forwards only: PopART's pad has a gradient for constants alone.
FORWARD_ONLY = frozenset(
    {
        "reflection_pad1d", "reflection_pad2d", "replication_pad1d", "replication_pad2d",
        "replication_pad3d",
    }
)  # fmt: skip

#: Of what has no handler, what comes to the same.
INSTEAD = {
    "nan_to_num": "torch.where(torch.isnan(x), ...)",
    "index_add": "scatter_add",
    "huber_loss": "smooth_l1_loss",
    "logaddexp": "logsumexp of a stack",
    "hypot": "(a * a + b * b).sqrt()",
    "repeat_interleave": "expand and reshape",
    "nonzero": "torch.where(condition, x, y) with fixed shapes",
    "masked_select": "torch.where(mask, x, y) with fixed shapes",
    "lerp": "a + weight * (b - a)",
    "tril": "masked_fill with a constant mask",
}


#: Places of indices that PopTorch takes as int32, and torch's own kernels, not all versions, as int64.
INDICES = {"gather": 2, "scatter": 2, "scatter_add": 2, "scatter_reduce": 2}


def with_wide_indices(operator: Any, arguments: Sequence[Any]) -> Tuple[Any, ...]:
    """Arguments of an operator, as torch's own kernels take them."""
    place = INDICES.get(base_name(operator), len(arguments))
    widened = (x.long() if i == place else x for i, x in enumerate(arguments))
    return tuple(widened)


def base_name(operator: Any) -> str:
    """The name that handlers go by.

    Args:
        operator: an overload of torch.ops, such as torch.ops.aten.add_.Tensor.
    """
    name = str(operator.name()).partition("::")[2].partition(".")[0]
    name = name if name.endswith("__") else name.rstrip("_")
    return {"zero": "zeros_like", "fill": "full_like"}.get(name, name)


def why_not(operator: Any) -> Optional[str]:
    """Why PopTorch does not compile an operator; None: it does."""
    name, space = base_name(operator), operator.namespace
    advice = f"; use {INSTEAD[name]}" if name in INSTEAD else ""
    if name in DYNAMIC:
        return f"the size of its result hangs on values, and a program has fixed shapes{advice}"
    if name in RAISING:
        return "PopTorch's handler of it always raises"
    if space == "aten" and name in HANDLED | PARTS | ABOUT_TYPES:
        return None
    return f"PopTorch has no handler of it{advice}"
