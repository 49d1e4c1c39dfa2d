"""Numbers that stay right where the textbook form does not: distances, and quantities without cancellation.

Shapes: `...` any leading axes, N rows, d features, K classes.
"""

import torch
from torch import Tensor

EXACT_DISTANCES_BELOW = 256
"""Up to so many rows, distances come from differences; above, from products with the pairs that cancel done again."""


def squared_distances(rows: Tensor) -> Tensor:
    """Squared Euclidean distances between rows, ‖a_i − a_j‖², from differences and never from ‖a‖² + ‖b‖² − 2ab.

    Args:
        rows: (..., K, d).

    Returns:
        (..., K, K), zero on the diagonal; differentiable once.
    """
    return torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").square()


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
