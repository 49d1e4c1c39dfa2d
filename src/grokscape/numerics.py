"""Numbers that stay right where the textbook form does not: distances, and quantities without cancellation.

Shapes: `...` any leading axes, N rows, d features, K classes.
"""

import torch
from torch import Tensor


def squared_distances(rows: Tensor) -> Tensor:
    """Squared Euclidean distances between rows, right to the last digits of the rows' own dtype.

    ‖a‖² + ‖b‖² − 2ab cancels for rows that are close; so rows are centred and the products are taken in float64, and
    what is left below its rounding is a distance of exactly zero.

    Args:
        rows: (..., K, d), floating point.

    Returns:
        (..., K, K), symmetric, zero on the diagonal; differentiable.
    """
    wide = rows.to(torch.float64)
    wide = wide - wide.detach().mean(-2, keepdim=True)
    gram = wide @ wide.mT
    norms = gram.diagonal(dim1=-2, dim2=-1)
    sums = norms[..., :, None] + norms[..., None, :]
    distances = sums - gram - gram.mT
    rounding = 4 * rows.shape[-1] * torch.finfo(torch.float64).eps
    return distances.where(distances.abs() > rounding * sums, 0).to(rows.dtype)


def select_rows(table: Tensor, index: Tensor) -> Tensor:
    """Rows of a table by index, for each replica its own: `table[..., index, :]`.

    Args:
        table: (..., K, d).
        index: int64 (..., N), the same leading axes.

    Returns:
        (..., N, d).
    """
    *lead, classes, width = table.shape
    return table.reshape(-1, width).index_select(0, _flat_index(index, classes)).reshape(*lead, -1, width)


def sum_by_class(values: Tensor, index: Tensor, num_classes: int) -> Tensor:
    """Sums of the values that share an index, for each replica its own.

    Args:
        values: (..., N, d).
        index: int64 (..., N), below `num_classes`.
        num_classes: K.

    Returns:
        (..., K, d).
    """
    *lead, _, width = values.shape
    replicas = index[..., 0].numel() if index.dim() > 1 else 1
    sums = values.new_zeros(replicas * num_classes, width)
    sums = sums.index_add(0, _flat_index(index, num_classes), values.reshape(-1, width))
    return sums.reshape(*lead, num_classes, width)


def _flat_index(index: Tensor, num_classes: int) -> Tensor:
    """Index into a table whose replica axes and rows were flattened to one axis."""
    if index.dim() == 1:
        return index
    flat = index.reshape(-1, index.shape[-1])
    offset = torch.arange(flat.shape[0], device=index.device) * num_classes
    return (flat + offset[:, None]).reshape(-1)
