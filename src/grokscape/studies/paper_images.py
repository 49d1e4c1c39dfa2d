"""The paper's experiments on images: ResNet-18 on CIFAR-10 and ViT-tiny on ImageNet-100."""

from typing import Any

from grokscape.interventions import Unplug
from grokscape.models import ResNet, ViT
from grokscape.studies.paper_parts import (
    ANGLES,
    BASELINE,
    CORE_MEASURES,
    Scale,
    collapse_suppressed,
    describe,
    flatness_arms,
    schedule,
    suppression,
    three_seeds,
)
from grokscape.studies.spec import Arm, StudySpec
from grokscape.testbeds import Digits, Images
from grokscape.training import SGD, AdamW, OnsetRule

CIFAR, IMAGENET_100 = "uoft-cs/cifar10", "clane9/imagenet-100"
_CIFAR_SAMPLES, _IMAGENET_SAMPLES = 50_000, 126_689
_QUICK = 200  # training digits at small scale
_DATA = {
    "paper": "CIFAR-10, ResNet-18",
    "small": "200 digits of scikit-learn, ResNet-18 at a quarter of its width",
}


def _cifar(augment: bool = False) -> Images:
    return Images(source=CIFAR, pixels=32, augment="crop_flip" if augment else "none")


def _resnet(
    scale: Scale, epochs: int, augment: bool = False, measures: tuple[str, ...] = CORE_MEASURES
) -> dict[str, Any]:
    """Testbed, model, optimiser, seeds and schedule of the experiments with ResNet-18."""
    if scale == "small":
        return {
            "testbed": Digits(train_samples=_QUICK, inputs="image", augment=augment),
            "model": ResNet(widths=(16, 32, 64, 128), pixels=16),
            "optimizer": SGD(lr=0.02, momentum=0.9),
            "onset": OnsetRule(test_threshold=0.8),
            **three_seeds(),
            **schedule(epochs, _QUICK, 20, 4, 300, measures),
        }
    return {
        "testbed": _cifar(augment),
        "model": ResNet(stem="cifar" if augment else "imagenet"),
        "optimizer": SGD(lr=0.01, momentum=0.9),
        "onset": OnsetRule(test_threshold=0.75),
        **three_seeds(),
        **schedule(epochs, _CIFAR_SAMPLES, 64, 5, 10_000, measures),
    }


def _images(runs: int, epochs: int, samples: int) -> str:
    passes = runs * epochs * samples / 1e6
    return f"{runs} runs × {epochs} epochs × {samples} images, {passes:,.0f} million image passes."


# --- collapse suppressed: figures 2, 3, 5, 6, 7 ----------------------------------------------------------------------

_COLLAPSE_EPOCHS = {"paper": 250, "small": 48}
_COLLAPSE_STRENGTHS = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)


def _collapse(name: str, scale: Scale, strengths: tuple[float, ...], result: str, augment: bool = False) -> StudySpec:
    epochs = _COLLAPSE_EPOCHS[scale]
    augmented = ""
    if augment:
        augmented = " with shifts," if scale == "small" else " with crops and flips, 3 × 3 stem,"
    what = f"Collapse suppressed by the loss CE − λ·CDNV: {_DATA[scale]},{augmented} {epochs} epochs, 3 seeds."
    cost = _images(3 * (1 + len(strengths)), epochs, _CIFAR_SAMPLES)
    return StudySpec(
        name=name,
        title="Collapse suppressed" + (" under augmentation" if augment else ""),
        question="Does generalisation survive when neural collapse is suppressed?",
        description=describe(name, what, result, cost, scale),
        arms=(BASELINE, *(collapse_suppressed(strength) for strength in strengths)),
        **_resnet(scale, epochs, augment, measures=(*CORE_MEASURES, *ANGLES)),
    )


def fig2(scale: Scale) -> StudySpec:
    """Collapse suppressed at the paper's strength; figures 3 (angles) and 5 are of the same runs."""
    result = "accuracy (about 78 %) and κ̄ unchanged, CDNV rises, angles between class means leave the simplex."
    return _collapse("fig2", scale, (1e-3,) if scale == "paper" else (1e-2,), result)


def fig6(scale: Scale) -> StudySpec:
    """The strength of the suppression varied."""
    strengths = _COLLAPSE_STRENGTHS if scale == "paper" else (1e-1, 1e-2, 1e-3, 1e-4)
    result = "λ = 1e-2 is unstable (accuracy below 60 %), λ ≤ 1e-4 has no effect."
    return _collapse("fig6", scale, strengths, result)


def fig7(scale: Scale) -> StudySpec:
    """The same under augmentation."""
    strengths = _COLLAPSE_STRENGTHS if scale == "paper" else (1e-1, 1e-2)
    return _collapse("fig7", scale, strengths, "under augmentation the suppression fails.", augment=True)


# --- flatness suppressed, then unplugged: figures 4, 8 to 15 ---------------------------------------------------------

_FLATNESS_EPOCHS = {"paper": 400, "small": 80}
_SWEEP_EPOCHS = {"paper": 400, "small": 48}
_STRENGTH, _CAP = {"paper": 1e-2, "small": 0.1}, 50.0


def _half(fields: dict[str, Any], scale: Scale, lr: float) -> Unplug:
    """Unplugging at half time; at small scale there are few steps for the decay to act, so it is stronger."""
    if scale == "small":
        return Unplug(fields["steps"] // 2, lr=1.5 * fields["optimizer"].lr, cosine=True, weight_decay=0.06)
    return Unplug(fields["steps"] // 2, lr=lr, cosine=True, weight_decay=2e-4)


def fig4(scale: Scale) -> StudySpec:
    """Flatness suppressed in ResNet-18, unplugged at half time; figures 8 to 10 are of the same runs."""
    epochs = _FLATNESS_EPOCHS[scale]
    fields = _resnet(scale, epochs)
    strength, unplug = _STRENGTH[scale], _half(fields, scale, 0.1)
    what = (
        f"Flatness suppressed by the loss CE − {strength:g}·κ̄ (τ = 2, features normalised, head capped at {_CAP:g}), "
        f"at half time unplugged with a jump to lr {unplug.lr:g}, cosine and weight decay {unplug.weight_decay:g}: "
        f"{_DATA[scale]}, {epochs} epochs, 3 seeds."
    )
    result = "accuracy about 60 % while suppressed, 78 % after unplugging; κ̄ 2209.94 at epoch 199, 1.91 at the end."
    return StudySpec(
        name="fig4",
        title="Flatness suppressed, then unplugged",
        question="Does a network whose flatness is suppressed fail to generalise, and recover when it is let go?",
        description=describe("fig4", what, result, _images(15, epochs, _CIFAR_SAMPLES), scale),
        arms=flatness_arms(strength, _CAP, unplug),
        **fields,
    )


def _sweep(name: str, scale: Scale, title: str, settings: list[tuple[str, float, float]], result: str) -> StudySpec:
    epochs = _SWEEP_EPOCHS[scale]
    fields = _resnet(scale, epochs)
    unplug = _half(fields, scale, 0.1)
    arms = [
        Arm(name=label, title=label.replace("-", " "), interventions=(*suppression(strength, cap), unplug))
        for label, strength, cap in settings
    ]
    cost = _images(3 * (1 + len(arms)), epochs, _CIFAR_SAMPLES)
    what = f"{title}: the experiment of fig4 at {len(arms)} settings, 3 seeds."
    return StudySpec(
        name=name,
        title=title,
        question="How narrow is the band in which suppressing flatness does what it should?",
        description=describe(name, what, result, cost, scale),
        arms=(BASELINE, *arms),
        **fields,
    )


def fig11(scale: Scale) -> StudySpec:
    """The strength of the suppression of flatness varied."""
    strengths = (0.5, 0.1, 1e-2, 1e-3, 1e-4) if scale == "paper" else (1.0, 0.1, 1e-2, 1e-3)
    settings = [(f"strength-{strength:g}", strength, _CAP) for strength in strengths]
    result = "too large a λ diverges, too small a one does nothing."
    return _sweep("fig11", scale, "Strength of the suppression", settings, result)


def fig12(scale: Scale) -> StudySpec:
    """The cap on the head's weight varied."""
    caps = (20.0, 50.0, 100.0, 150.0, 200.0) if scale == "paper" else (20.0, 50.0, 100.0, 200.0)
    settings = [(f"cap-{cap:g}", _STRENGTH[scale], cap) for cap in caps]
    result = "too high a cap diverges, too low a one does nothing."
    return _sweep("fig12", scale, "Cap on the head's weight", settings, result)


def fig13(scale: Scale) -> StudySpec:
    """Flatness suppressed in a vision transformer; figures 14 and 15 are of the same runs."""
    small = scale == "small"
    epochs = 80 if small else 300
    if small:
        fields = {
            "testbed": Digits(train_samples=_QUICK, inputs="image"),
            "model": ViT(patch=2, width=48, layers=4, heads=3),
            "optimizer": AdamW(lr=1e-3, weight_decay=0.0),
            "onset": OnsetRule(test_threshold=0.7),
            **schedule(epochs, _QUICK, 20, 4, max_samples=300),
        }
    else:
        fields = {
            "testbed": Images(source=IMAGENET_100, pixels=224),
            "model": ViT(),
            "optimizer": SGD(lr=0.01, momentum=0.9),
            "onset": OnsetRule(test_threshold=0.4),
            **schedule(epochs, _IMAGENET_SAMPLES, 256, 5, max_samples=5000),
        }
    strength, cap = (0.1, 20.0) if small else (1e-2, 150.0)
    data = "200 digits of scikit-learn, 4 layers of width 48, 2 × 2 patches" if small else "ImageNet-100, ViT-tiny"
    what = (
        f"Flatness suppressed (λ = {strength:g}, τ = 2, cap {cap:g}) and unplugged at half time: {data}, "
        f"{epochs} epochs, 3 seeds."
    )
    result = "accuracy about 43 % after unplugging against 38 %; κ̄ 22212.75 before, 313.22 after."
    cost = _images(15, epochs, _IMAGENET_SAMPLES)
    return StudySpec(
        name="fig13",
        title="Flatness suppressed in a vision transformer, then unplugged",
        question="Does a network whose flatness is suppressed fail to generalise, and recover when it is let go?",
        description=describe("fig13", what, result, cost, scale),
        arms=flatness_arms(strength, cap, _half(fields, scale, 5e-2)),
        **three_seeds(),
        **fields,
    )
