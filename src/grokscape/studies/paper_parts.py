"""What the presets of the paper's experiments share: seeds, schedules, arms, and the words that describe them."""

from typing import Any, Literal

from grokscape.interventions import NormalizeFeatures, Suppress, Unplug, WeightCap
from grokscape.studies.spec import Arm
from grokscape.training import Evaluation

Scale = Literal["paper", "small"]

SEEDS = (1, 42, 15213)
"""Initialisation seeds of the paper's experiments on images and text."""

PAPER = "Han et al. 2025 (arXiv 2509.17738)"

CORE_MEASURES = (
    "relative_flatness",
    "relative_flatness_bound",
    "relative_flatness_per_loss",
    "cdnv",
    "nc1_ratio",
    "rnc1",
    "nc2_equinorm",
    "nc2_equiangular",
    "nc2_etf",
    "nc3",
    "nc4",
    "margin",
    "head_norm",
)
BASELINE = Arm(name="baseline", title="Baseline", role="baseline")
ANGLES = ("classes", *(f"class_angle_{name}" for name in ("min", "q25", "median", "q75", "max")))
"""What Figure 3, the distribution of the angles between class means, is drawn from."""


def three_seeds() -> dict[str, Any]:
    """Fields of a specification: the paper's seeds, all on one split of the data."""
    return {"seeds": 3, "init_seeds": SEEDS, "same_split": True}


def schedule(
    epochs: int,
    samples: int,
    batch_size: int,
    every: int,
    max_samples: int | None = None,
    measures: tuple[str, ...] = CORE_MEASURES,
) -> dict[str, Any]:
    """Fields of a specification for training by epochs: steps, batch size, and a measurement every so many epochs.

    The last samples of an epoch that fill no batch are left out of it.
    """
    per_epoch = samples // batch_size
    steps = tuple(range(0, epochs * per_epoch + 1, every * per_epoch))
    return {
        "steps": epochs * per_epoch,
        "batch_size": batch_size,
        "evaluation": Evaluation(measures=measures, steps=steps, max_samples=max_samples),
    }


def collapse_suppressed(strength: float) -> Arm:
    """Loss − λ·CDNV … in the paper's sign: the variance between samples of a class is pushed up."""
    return Arm(
        name=f"collapse-suppressed-{strength:g}",
        title=f"Collapse suppressed, λ = {strength:g}",
        interventions=(Suppress("cdnv", strength=strength),),
    )


def suppression(strength: float, cap: float) -> tuple[Any, ...]:
    """Loss − λ·κ̄ with softmax at temperature 2 in the penalty, normalised features and a cap on the head's weight."""
    return (Suppress("relative_flatness_bound", strength=strength, temperature=2.0), *_constraints(cap))


def _constraints(cap: float) -> tuple[Any, ...]:
    """What keeps the penalty, which has no bound of its own, from running away."""
    return (NormalizeFeatures(), WeightCap(cap))


def flatness_arms(strength: float, cap: float, unplug: Unplug) -> tuple[Arm, ...]:
    """Baseline; flatness suppressed, throughout and then unplugged; two controls, each a part of what these do.

    The controls are normalisation and cap without the penalty, and the unplugging's schedule without a suppression.
    """
    held, constraints = suppression(strength, cap), _constraints(cap)
    return (
        BASELINE,
        Arm(name="flatness-suppressed", title="Flatness suppressed", interventions=held),
        Arm(name="flatness-unplugged", title="Flatness suppressed, then unplugged", interventions=(*held, unplug)),
        Arm(name="constraints-alone", title="Normalisation and cap alone", role="control", interventions=constraints),
        Arm(name="schedule-alone", title="The unplugging's schedule alone", role="control", interventions=(unplug,)),
    )


def describe(name: str, what: str, result: str, cost: str, scale: Scale) -> str:
    """Design, the paper's result, the cost at the paper's scale and the command, for `grokscape presets`."""
    flag, cost = (" --scale small", "minutes on 2 CPU cores.") if scale == "small" else ("", cost)
    return f"{what} {PAPER}: {result} Cost: {cost} Command: grokscape run {name}{flag}"
