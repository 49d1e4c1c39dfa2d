"""Relative flatness of hidden layers in a run: a probe for every sample, the same in all replicas.

Signs follow from step and layer alone, so that no replica's numbers depend on which others there are, and a resumed run
draws those that the run which was never stopped would have drawn.

Shapes: r replicas, N samples.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from grokscape.measures import OF_LAYER, OF_LAYER_ERROR, Snapshot
from grokscape.measures.softmax import Softmax
from grokscape.models import Network
from grokscape.perturbations import Perturbation, Perturbations, curvatures

_PROBES = 4  # where it is measured; in a penalty there is one


def cross_entropies(seen: Snapshot, *, curved: bool) -> Tensor:
    """Of every sample, (r, N), with slopes that keep their digits where 1 − p_y is below the rounding of 1.

    A sample's slopes in its logits add up to 0: what is left over in floating point is the rounding of p_y − 1.

    Args:
        seen: of the samples.
        curved: whether second derivatives are wanted, and their digits; takes longer.
    """
    if curved:
        return Softmax.of(seen.logits).cross_entropy(seen.labels)
    logits, labels = seen.logits.flatten(0, 1), seen.labels.flatten()
    if logits.requires_grad:
        logits.register_hook(lambda slope: slope.scatter_add(-1, labels[:, None], -slope.sum(-1, keepdim=True)))
    return F.cross_entropy(logits, labels, reduction="none").view(seen.labels.shape)


def flatness_of(loss: Tensor, changes: Perturbations, layers: Iterable[str]) -> dict[str, Tensor]:
    """κ of some of the perturbed layers as a part of a loss, (r,), by name of the measure; from the mean loss (r,)."""
    found = curvatures(loss, {layer: changes[layer] for layer in layers}, differentiable=True)
    return {OF_LAYER + layer: value for layer, value in found.items()}


class HiddenLayers:
    """Perturbations of a network's hidden layers.

    Args:
        network: whose.
        like: a tensor whose dtype and device to use.
    """

    def __init__(self, network: Network, like: Tensor) -> None:
        self._like = like
        self._inputs = network.layers
        self._number = {layer: number for number, layer in enumerate(network.layers)}

    def generators(self, layers: Iterable[str], step: int, probe: int = 0) -> dict[str, torch.Generator]:
        """Of each layer's signs at a step; probe 0 is that of penalties."""
        seeds = {layer: (step * (_PROBES + 1) + probe) * len(self._number) + self._number[layer] for layer in layers}
        return {layer: torch.Generator().manual_seed(seed) for layer, seed in seeds.items()}

    def changes(
        self, layers: Iterable[str], labels: Tensor, generators: Mapping[str, torch.Generator]
    ) -> dict[str, Perturbation]:
        """Perturbations for samples with labels (r, N)."""
        replicas, samples = labels.shape
        return {
            layer: Perturbation.draw(
                self._like.new_zeros(replicas, requires_grad=True), samples, self._inputs[layer], generators[layer]
            )
            for layer in layers
        }

    def measured(
        self,
        layers: Sequence[str],
        step: int,
        losses: Callable[[Perturbations, Tensor, Tensor], Tensor],
        pieces: Callable[[], Iterable[tuple[Tensor, Tensor]]],
    ) -> dict[str, Tensor]:
        """κ of hidden layers over many samples, and its standard error over probes; (r,) by name of the measure.

        Args:
            layers: which.
            step: for the signs.
            losses: of every sample (r, N) of perturbed networks, from perturbations, inputs and labels.
            pieces: gives inputs and labels of all samples, a piece at a time.
        """
        if not layers:
            return {}
        probes = []
        for probe in range(1, _PROBES + 1):
            generators, sums, samples = self.generators(layers, step, probe), [], 0
            for inputs, labels in pieces():
                with torch.enable_grad():
                    changes = self.changes(layers, labels, generators)
                    found = curvatures(losses(changes, inputs, labels).sum(1), changes)
                sums.append(torch.stack(list(found.values())))
                samples += labels.shape[1]
            probes.append(torch.stack(sums).sum(0) / samples)
        estimates = torch.stack(probes)  # (probes, layers, r)
        values, errors = estimates.mean(0), estimates.std(0) / _PROBES**0.5
        return {
            **{OF_LAYER + layer: value for layer, value in zip(layers, values, strict=True)},
            **{OF_LAYER_ERROR + layer: error for layer, error in zip(layers, errors, strict=True)},
        }
