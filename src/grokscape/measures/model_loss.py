"""Logits of a model lined up with labels, and the loss of a batch as a sum over its samples.

Every position that carries a label is a sample; ignored positions are left out. Causal language models of transformers
predict the next position, so their labels are shifted by one, as they do themselves.

Shapes: B sequences or samples, T positions, M samples that carry a loss, K classes.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grokscape.measures.batches import IGNORED, Batch, logits_of, shifts_labels, without_adapters
from grokscape.measures.checks import check_indices, check_labels, form_of_labels
from grokscape.measures.losses import Loss, check_loss
from grokscape.measures.softmax import Softmax
from grokscape.numerics import holds, widen

_MOVE_CLASSES = "; classes come last, move them by .movedim(1, -1), or give layer_flatness a function as loss"


def call(model: nn.Module, batch: Batch) -> Any:
    """What a model makes of a batch."""
    try:
        return model(*batch.arguments, **_keywords(model, batch))
    except TypeError as error:
        given = ", ".join([f"{len(batch.arguments)} by position", *batch.keywords])
        error.add_note(f"of a batch the model gets all but the labels ({given}); give batches of (inputs, labels)")
        raise


def forward(model: nn.Module, batch: Batch, parameters: Mapping[str, Tensor] | None = None) -> Tensor:
    """The logits of a batch, (B, K) or (B, T, K), with the model's own parameters or others in their place."""
    if parameters is None:
        return logits_of(call(model, batch))
    return logits_of(torch.func.functional_call(model, dict(parameters), batch.arguments, _keywords(model, batch)))


def _keywords(model: nn.Module, batch: Batch) -> dict[str, Any]:
    """What a model gets by name; of encoder-decoder models the labels too, from which they make what the decoder sees.

    Without labels and `decoder_input_ids` the decoder would see the encoder's inputs, or nothing.
    """
    config = getattr(without_adapters(model), "config", None)
    said = {"decoder_input_ids", "decoder_inputs_embeds"} & batch.keywords.keys()
    if said or batch.labels.dim() != 2 or not getattr(config, "is_encoder_decoder", False):
        return batch.keywords
    return {**batch.keywords, "labels": batch.labels}


def check_outputs(logits: Tensor) -> None:
    """Raise ValueError if logits (..., K) are those of one class, whose cross-entropy is always 0."""
    if logits.shape[-1] < 2:
        raise ValueError("the head has one output; measures of a classifier need one for each class")


def align(model: nn.Module, labels: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Labels and tensors (B, …, *), the last of them logits, as the samples that carry a loss: (M), (M, *).

    Raises:
        TypeError: labels that are no class indices.
        ValueError: labels do not fit the leading axes of the tensors, or logits alone of which they do not tell
            whether classes come last.
    """
    check_indices(labels)
    *others, logits = tensors
    lead, ahead = logits.shape[:-1], labels.dim() > 1 and labels.shape == logits.shape[:1] + logits.shape[2:]
    if labels.shape != lead:
        raise ValueError(
            f"labels of shape {tuple(labels.shape)} do not fit logits of shape {tuple(logits.shape)}: expected "
            f"{tuple(lead)}, one class index for each row of logits; {form_of_labels(labels)}"
            f"{_MOVE_CLASSES if ahead else ''}"
        )
    if ahead and labels.dim() > 2 and not others:  # features beside them would tell; in sequences classes come last
        raise ValueError(
            f"logits of shape {tuple(logits.shape)} with labels of shape {tuple(labels.shape)} may have their classes "
            f"last, or at axis 1 as for F.cross_entropy; let the model return rows (M, K), with labels (M,), or give "
            f"layer_flatness a function as loss"
        )
    return align_labels(model, labels), *(rows_with_labels(model, labels, tensor) for tensor in tensors)


def align_labels(model: nn.Module, labels: Tensor) -> Tensor:
    """Labels (B, …) of the samples that carry a loss, (M).

    Raises:
        TypeError: labels that are no class indices.
    """
    check_indices(labels)
    labels = _shifted(model, labels).flatten().long()
    return labels[labels != IGNORED]


def rows_with_labels(model: nn.Module, labels: Tensor, tensor: Tensor) -> Tensor:
    """Rows (M, *) of a tensor (B, …, *) that belong to the samples that carry a loss."""
    if labels.dim() == 2 and shifts_labels(model):
        tensor = tensor[:, :-1]
    rows, kept = tensor.flatten(0, -2), _shifted(model, labels).flatten() != IGNORED
    return rows if bool(kept.all()) else rows[kept]  # a copy of the logits of a language model takes its time


def _shifted(model: nn.Module, labels: Tensor) -> Tensor:
    return labels[:, 1:] if labels.dim() == 2 and shifts_labels(model) else labels


def at_least_one(samples: int) -> int:
    """The number of samples; a ValueError if there are none."""
    if samples == 0:
        raise ValueError("there are no samples to measure: the data is empty, or every label is ignored")
    return samples


def total_loss(
    model: nn.Module, batch: Batch, loss: Loss, parameters: Mapping[str, Tensor] | None = None
) -> tuple[Tensor, int]:
    """Sum of the losses of a batch's samples, and their number; for parameters as in `forward`.

    Raises:
        ValueError: an unknown loss; labels that do not fit the loss or the logits.
    """
    check_loss(loss)
    logits = forward(model, batch, parameters)
    labels = batch.labels
    if callable(loss):
        losses = loss(logits, labels)
        if not isinstance(losses, Tensor) or losses.dim() == 0:
            raise ValueError("loss must give one value per sample, got a single one; use reduction='none'")
        losses = _without_ignored(losses.flatten(), labels)
        return losses.sum(), losses.numel()
    if loss == "cross_entropy" and not labels.is_floating_point():
        kept, rows = align(model, labels, logits)
        check_outputs(rows)
        check_labels(kept, rows, rows.shape[-1])
        return Softmax.of(widen(rows)).cross_entropy(kept).sum(), len(kept)
    logits = widen(logits)
    if labels.shape != logits.shape:
        raise ValueError(
            f"{loss} needs targets of the shape of the logits, {tuple(logits.shape)}, got {tuple(labels.shape)}"
        )
    return _dense_loss(loss, logits, labels.to(logits.dtype)).sum(), logits[..., 0].numel()


def _without_ignored(losses: Tensor, labels: Tensor) -> Tensor:
    """Losses (M) of positions with a label, where there is one loss for each label, or for each but the first."""
    if not labels.is_floating_point():
        for owners in (labels, labels[:, 1:]) if labels.dim() == 2 else (labels,):
            if owners.numel() == len(losses):
                return losses[owners.flatten() != IGNORED]
    return losses


def _are_shares(targets: Tensor, axis: int) -> bool:
    return holds(((targets.sum(axis) - 1).abs() < 0.01).all())


def _dense_loss(loss: Any, logits: Tensor, targets: Tensor) -> Tensor:
    """Losses (B, …) for targets of the logits' shape; means over outputs as in torch, except for soft labels."""
    if loss == "cross_entropy":
        if targets.dim() > 2 and _are_shares(targets, 1) and not _are_shares(targets, -1):
            raise ValueError(f"soft labels of shape {tuple(targets.shape)} sum to 1 over axis 1{_MOVE_CLASSES}")
        return Softmax.of(logits).cross_entropy(targets)
    if loss == "binary_cross_entropy":  # softplus of what is negative, whose derivatives do not cancel
        positive = logits > 0
        unlikely = F.softplus(logits.where(~positive, -logits))
        return (unlikely + torch.where(positive, 1 - targets, -targets) * logits).mean(-1)
    return (logits - targets).square().mean(-1)
