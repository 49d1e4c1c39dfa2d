"""`grokscape.measure`: every measure on somebody's own model and data, at fixed weights, in one pass.

What single samples contribute is kept as one number each; features are merged into class statistics batch by batch, so
memory stays bounded. Only nc4 and ildr look at single samples against the final class means: for them features are kept
while they fit, and the data is gone through a second time where they do not.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from grokscape.measures.batches import as_batch, batches, eagerly, evaluating, placement
from grokscape.measures.checks import MeasureWarning, nan_inputs
from grokscape.measures.functional import why_no_collapse
from grokscape.measures.measurement import Measurement
from grokscape.measures.model_loss import call
from grokscape.measures.probe import Probe
from grokscape.measures.representation import roots_of_eigenvalues
from grokscape.measures.snapshot import Quantities, Snapshot, with_float64
from grokscape.measures.statistics import ClassMeans, nearer_mean
from grokscape.measures.streaming import ClassMoments, StreamedStatistics
from grokscape.measures.table import MEASURES, layers_of
from grokscape.numerics import full_precision, select_rows
from grokscape.plural import counted

KEPT_ELEMENTS = 2**28
"""So many features are kept for the second look (1 GiB in float32)."""

Progress = Callable[[str], None]
Looked = tuple[Tensor, Tensor, Tensor]
"""Features (M, d), labels (M) and predictions (M) of a batch."""


@full_precision()
def measure(
    model: nn.Module,
    loader: Any,
    head: str | nn.Module | None = None,
    test_loader: Any = None,
    *,
    measures: str | Iterable[str] | None = None,
    batch_size: int = 256,
    progress: Progress | None = None,
) -> Measurement:
    """Measures of a model's linear head on a data set.

    The model runs in evaluation mode and without gradients, on the device and in the dtype of its parameters, and is
    left as it was found. Positions labelled −100 are left out; causal language models of transformers are measured at
    the positions that predict a label. Where a model divides by statistics of the batch even then (BatchNorm with
    track_running_stats=False), values are those of the loader's batches.

    Args:
        model: any module that returns logits that are linear in what enters the head.
        loader: training data: a DataLoader or iterable of batches, (inputs, labels) or a mapping with "labels"; a
            Dataset of (input, label) pairs; or tensors (inputs, labels).
        head: name or module of the head; found where not given, and then named in the result.
        test_loader: held-out data of the same form: adds entries "test/…" (around held-out class means) and "cross/…"
            (around training class means).
        measures: names of `MEASURES`, or one; by default all that can be gathered batch by batch.
        batch_size: for data that is not in batches.
        progress: called with a line of text after every batch.

    Returns:
        A mapping: m["relative_flatness"], m["test/cdnv"], m["cross/cdnv"]; it prints as a table.

    Raises:
        KeyError: a measure has no such name.
        ValueError: no head, no samples, or labels that do not fit.
        TypeError: data or batches of another form.
    """
    names = _checked(measures)
    with evaluating(model), eagerly(model), torch.no_grad():
        probe = Probe(model, head)
        train = _Source(model, probe, loader, batch_size, progress, "train").measured(names)
        splits: dict[str, tuple[_Seen, _Seen | None, list[str]]] = {"train": (train, None, names)}
        if test_loader is not None:
            held_out = [name for name in names if MEASURES[name].property != "norm"]
            source = _Source(model, probe, test_loader, batch_size, progress, "test")
            test = source.measured(held_out, known=train.moments.counts >= 2)
            splits["test"] = (test, None, held_out)
            splits["cross"] = (test, train, [name for name in held_out if MEASURES[name].around])
        values: dict[str, float] = {}
        notes: list[str] = []
        for split, (seen, around, wanted) in splits.items():
            found, said = _values(seen, around, wanted)
            values |= {name if split == "train" else f"{split}/{name}": value for name, value in found.items()}
            notes += [f"{split}: {note}" for note in said]
    samples = {split: seen.number for split, (seen, _, _) in splits.items() if split != "cross"}
    for note in notes:
        if " NaN" in note:
            warnings.warn(note, MeasureWarning, stacklevel=2)
    return Measurement(values, probe.head.name, head is None, samples, tuple(notes))


def _checked(measures: str | Iterable[str] | None) -> list[str]:
    if measures is None:
        return [name for name in MEASURES if name not in _WHOLE]
    names = [measures] if isinstance(measures, str) else list(measures)
    for name in names:
        for layer in layers_of([name]):
            raise ValueError(f"{name} is of a hidden layer: take layer_flatness(model, data, {[layer]})")
        if name not in MEASURES:
            raise KeyError(f"no measure is called {name!r}; there are {', '.join(MEASURES)}")
        if name in _WHOLE:
            raise ValueError(f"{name} looks at all samples at once: take MEASURES[{name!r}] of a Snapshot")
    return names


@dataclass
class _Source:
    """A model with a probe on its head, and data to go through as often as needed."""

    model: nn.Module
    probe: Probe
    data: Any
    batch_size: int
    progress: Progress | None
    name: str

    def __iter__(self) -> Iterator[Snapshot]:
        """What the head saw of each batch."""
        device, dtype = placement(self.model)
        for number, raw in enumerate(batches(self.data, self.batch_size), start=1):
            batch = as_batch(raw).to(device, dtype)
            with self.probe:
                call(self.model, batch)
                snapshot = with_float64(self.probe.snapshot(batch.labels))
            yield snapshot
            if self.progress is not None:
                self.progress(f"{self.name}: batch {number}, {counted(len(snapshot.labels), 'sample')}")

    def measured(self, names: Iterable[str], known: Tensor | None = None) -> "_Seen":
        """Go through the data once; samples of classes that are not `known` (K) get moments of their own."""
        needed = {name for measure in names for name in MEASURES[measure].inputs} | {"labels"}
        parts: dict[str, list[Tensor]] = {name: [] for name in _PER_SAMPLE if needed & _NEEDED_FOR[name]}
        kept: list[Looked] | None = [] if set(names) & _SECOND_LOOK else None
        elements, moments, foreign, head = 0, None, None, None
        shared: dict[str, Any] = {"noise": torch.Generator().manual_seed(0)}
        scatter = bool(set(names) & _OF_THE_SCATTER)
        for head in self:
            classes, width = head.weight.shape
            empty = partial(ClassMoments.empty, classes, width, head.weight.device, scatter=scatter)
            inside = None if known is None else known[head.labels]
            if inside is None or inside.all():
                moments = (moments or empty()).update(head.features, head.labels)
            else:
                moments = (moments or empty()).update(head.features[inside], head.labels[inside])
                foreign = (foreign or empty()).update(head.features[~inside], head.labels[~inside])
            quantities = Quantities(head, **shared)
            for name, values in parts.items():
                values.append(_PER_SAMPLE[name](quantities))
            shared |= {name: vars(quantities)[name] for name in _OF_THE_WEIGHT if name in vars(quantities)}
            elements += head.features.numel()
            if kept is not None:
                # a copy: features may be a view of something larger, or lie in memory that a loader writes to again
                kept.append((head.features.clone(), head.labels, quantities.prediction))
            kept = kept if elements <= KEPT_ELEMENTS else None
        if head is None or moments is None or not elements:
            raise ValueError(f"there are no {self.name} samples: the data is empty, or every label is ignored")
        samples = {name: torch.cat(values) for name, values in parts.items()}
        return _Seen(self, head, samples, moments, foreign, kept)


_PER_SAMPLE: dict[str, Callable[[Quantities], Tensor]] = {
    "squared_norms": lambda quantities: quantities.squared_norms.double(),
    "row_variance": lambda quantities: quantities.row_variance.double(),
    "log_row_variance": lambda quantities: quantities.log_row_variance.double(),
    "cross_entropies": lambda quantities: quantities.cross_entropies.double(),
    "impurity": lambda quantities: quantities.softmax.impurity().double(),
    "entropies": lambda quantities: quantities.entropies.double(),
    "margins": lambda quantities: quantities.margins.double(),
    "saturated": lambda quantities: quantities.saturated,
    "smoothing_excesses": lambda quantities: quantities.smoothing_excesses.double(),
    "prediction": lambda quantities: quantities.prediction,
    "labels": lambda quantities: quantities.labels,
}
_NEEDED_FOR = {name: {name} for name in _PER_SAMPLE} | {
    "impurity": {"softmax"},
    "cross_entropies": {"cross_entropies", "smoothed_loss"},
    "smoothing_excesses": {"smoothing_excesses", "smoothed_loss"},
}
"""Which inputs of the table's rows come from each number of a sample."""
_OF_THE_WEIGHT = {"row_distances"}
"""What depends on the weight alone, and so serves all batches."""
_SECOND_LOOK = {"nc4", "ildr"}
_OF_THE_SCATTER = {"nc1", "kernel_alignment", "effective_rank", "spectral_entropy"}
_WHOLE = {name for name, row in MEASURES.items() if {"features", "logits"} & set(row.inputs)}


class _Gathered(SimpleNamespace):
    """Quantities under the names that the rows of the table ask for."""

    @cached_property
    def spectrum(self) -> Tensor:
        """Singular values of the centred features."""
        return roots_of_eigenvalues(self.moments.total_scatter())


@dataclass
class _Impurity:
    """Stands for the softmax of all samples where only its impurity was kept."""

    values: Tensor

    def impurity(self) -> Tensor:
        """1 − ‖p_i‖² of every sample."""
        return self.values


@dataclass
class _Seen:
    """What one pass over the data left: numbers of every sample, class moments, and features as long as they fit.

    Samples of classes that do not take part in training have moments of their own, for around training means they are
    left out.
    """

    source: _Source
    head: Snapshot
    samples: dict[str, Tensor]
    known: ClassMoments
    foreign: ClassMoments | None
    kept: list[Looked] | None

    @cached_property
    def moments(self) -> ClassMoments:
        """Class moments of all samples."""
        return self.known if self.foreign is None else self.known.merge(self.foreign)

    @property
    def number(self) -> int:
        """How many samples there were."""
        return len(self.samples["labels"])

    def again(self) -> Iterator[Looked]:
        """Features, labels and predictions once more: from memory, or through the model."""
        if self.kept is not None:
            yield from self.kept
            return
        for snapshot in self.source:
            yield snapshot.features, snapshot.labels, snapshot.logits.argmax(-1)

    def quantities(self, around: "_Seen | None") -> Any:
        """What the rows of the table take, under the same names as `Quantities` has."""
        statistics = self.moments.compute() if around is None else self.known.around(around.moments)
        fields = {name: value for name, value in self.samples.items() if name != "impurity"}
        centre = self if around is None else around
        if {"cross_entropies", "smoothing_excesses"} <= centre.samples.keys():
            noisy = centre.samples["cross_entropies"] + centre.samples["smoothing_excesses"]
            fields["smoothed_loss"] = noisy.mean()
        return _Gathered(
            **fields,
            moments=self.moments,
            softmax=_Impurity(self.samples["impurity"]) if "impurity" in self.samples else None,
            weight=self.head.weight.double(),
            parameters=self.head.parameters,
            statistics=SecondLook(**vars(statistics), again=self.again, number=self.number),
        )


@dataclass(frozen=True)
class SecondLook(StreamedStatistics):
    """Streamed statistics that can go through the samples once more.

    Attributes:
        again: gives features, labels and predictions of every sample.
        number: how many samples there were the first time.
    """

    again: Callable[[], Iterable[Looked]]
    number: int

    @cached_property
    def looked(self) -> tuple[Tensor, Tensor]:
        """Share of samples with a class mean nearer than the predicted one's, and mean distance to the own mean."""
        wrong, distance, seen = 0, self.means.new_zeros(()), 0
        for features, labels, prediction in self.again():
            samples = features.to(self.means.dtype) - self.offset
            wrong += int(nearer_mean(self, samples, prediction).sum())
            apart = torch.linalg.vector_norm(samples - select_rows(self.means, labels), dim=-1)
            distance = distance + apart[self.present[labels]].sum()
            seen += len(labels)
        if seen != self.number:
            return self.means.new_tensor(float("nan")), self.means.new_tensor(float("nan"))
        return self.means.new_tensor(wrong / seen), distance / self.kept_counts.sum()

    def share_nearer(self, prediction: Tensor) -> Tensor:
        """Share of samples with another class mean nearer than the predicted one's."""
        return self.looked[0]

    def mean_deviation(self) -> Tensor:
        """Mean distance of a sample to the mean of its class."""
        return self.looked[1]


def _values(seen: _Seen, around: _Seen | None, names: Iterable[str]) -> tuple[dict[str, float], list[str]]:
    """Values by name, and notes on what does not exist or was left out."""
    quantities = seen.quantities(around)
    values = {name: float(MEASURES[name].of(quantities)) for name in names}
    statistics = quantities.statistics
    missing = [name for name, value in values.items() if math.isnan(value)]
    notes = []
    left_out = len(statistics.present) - int(statistics.number_present)
    if left_out:
        notes.append(f"{left_out} of {len(statistics.present)} classes have fewer than two samples and are left out")
    if missing:
        notes.append(f"{', '.join(missing)} NaN: {_why(seen, statistics)}")
    return values, notes


def _why(seen: _Seen, statistics: ClassMeans) -> str:
    if "looked" in vars(statistics) and vars(statistics)["looked"][0].isnan():
        return "the features are too many to keep, and the data could not be gone through again; give a DataLoader"
    return nan_inputs(class_means=seen.moments.means) or why_no_collapse(None, statistics)
