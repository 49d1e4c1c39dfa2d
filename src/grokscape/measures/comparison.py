"""What geometry is compared with: fit, margins, norms.

Shapes: `...` any leading replica axes, N samples, d features, K classes.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from grokscape.measures.representation import layer_norms


def cross_entropy_from(cross_entropies: Tensor) -> Tensor:
    """Mean cross-entropy; keeps its digits where float32 softmax rounds to one-hot."""
    return cross_entropies.mean(-1)


def accuracy(prediction: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    """Share of samples whose largest logit is the label's, in the dtype of the head's weight."""
    return (prediction == labels).to(weight.dtype).mean(-1)


def predictive_entropy(entropies: Tensor) -> Tensor:
    """Mean entropy of the predicted probabilities: how uncertain the network is, whatever the labels."""
    return entropies.mean(-1)


def margins(logits: Tensor, labels: Tensor) -> Tensor:
    """z_y − max_{c≠y} z_c of every sample: (..., N)."""
    label = labels[..., None]
    others = logits.scatter(-1, label, float("-inf")).amax(-1)
    return logits.gather(-1, label).squeeze(-1) - others


def margin(margins: Tensor) -> Tensor:
    """Mean margin of the logits."""
    return margins.mean(-1)


def margin_min(margins: Tensor) -> Tensor:
    """Smallest margin of the logits: positive when every sample is classified rightly."""
    return margins.amin(-1)


def margin_normalised(margins: Tensor, weight: Tensor, squared_norms: Tensor) -> Tensor:
    """Mean of margin / (‖W‖_F ‖φ_i‖): the margin that rescaling features or head cannot change."""
    size = torch.linalg.matrix_norm(weight)[..., None] * squared_norms.sqrt()
    return (margins / size).mean(-1)


def head_norm(weight: Tensor) -> Tensor:
    """‖W‖_F of the head."""
    return torch.linalg.matrix_norm(weight)


def weight_norm(parameters: Mapping[str, Tensor], weight: Tensor) -> Tensor:
    """‖θ‖ over all parameters of the network; NaN when the snapshot has none.

    Args:
        parameters: name → (..., *shape).
        weight: the head's weight (..., K, d); says how many leading axes are replicas.
    """
    lead = weight.dim() - 2
    if not parameters:
        return weight.new_full(weight.shape[:lead], float("nan"))
    norms = layer_norms(parameters, lead).values()
    return torch.linalg.vector_norm(torch.stack(list(norms), -1), dim=-1)
