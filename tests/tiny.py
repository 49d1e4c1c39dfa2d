"""A study of a fraction of a second: quadratic MLP on x + y mod 7, with every intervention and option in an arm."""

from collections.abc import Sequence
from typing import Any

from grokscape.studies import StudySpec

ADAMW = {"kind": "adamw", "lr": 0.01}
SGD = {"kind": "sgd", "lr": 1.0, "weight_decay": 1e-3}
CLAMP = {"kind": "clamp", "measure": "cdnv", "at_least": 1.2}
FLAT = {"kind": "clamp", "measure": "relative_flatness", "at_least": 3.0}
ARMS: dict[str, list[dict[str, Any]]] = {
    "baseline": [],
    "promoted": [{"kind": "promote", "measure": "relative_flatness", "strength": 0.01, "ramp": 7}],
    "held": [FLAT],
    "between": [{**CLAMP, "at_most": 3.0, "until": 25}],
    "since memorisation": [{**CLAMP, "at_least": 0.9, "relative_to": "memorisation"}],
    "since step 10": [{**CLAMP, "at_least": 1.0, "relative_to": 10}],
    "paper": [
        {"kind": "suppress", "measure": "relative_flatness_bound", "strength": 0.01, "temperature": 2.0},
        {"kind": "normalize_features"},
        {"kind": "weight_cap", "at_most": 5.0},
        {"kind": "unplug", "step": 20, "lr": 0.003, "cosine": True, "weight_decay": 0.1},
    ],
    "spectral": [{"kind": "weight_cap", "at_most": 1.5, "norm": "spectral", "start": 5}],
    "hidden layer": [{"kind": "clamp", "measure": "relative_flatness@first", "at_least": 3.0, "start": 10}],
    "hidden layer, since memorisation": [
        {"kind": "clamp", "measure": "relative_flatness@first", "at_least": 0.9, "relative_to": "memorisation"}
    ],
    "loss": [{"kind": "clamp", "measure": "loss", "at_least": 0.02}],
}


OPTIONS: dict[str, dict[str, Any]] = {
    "sam": {"sam_radius": 0.05},
    "orthogonal gradient": {"orthogonal_gradient": True},
    "warm-up": {"warmup": 30},
    "cosine": {"schedule": "cosine", "warmup": 5},
}


def arm(name: str) -> dict[str, Any]:
    """One of `ARMS` or `OPTIONS`."""
    role = "baseline" if name == "baseline" else "manipulation"
    return {"name": name, "role": role, "interventions": ARMS.get(name, []), "optimizer": OPTIONS.get(name, {})}


def study(arms: Sequence[str | dict[str, Any]] = ("baseline", "held"), **changes: Any) -> dict[str, Any]:
    """The specification as JSON holds it."""
    return {
        "name": "tiny",
        "title": "A tiny study",
        "testbed": {"kind": "modular", "operation": "x+y", "p": 7, "train_fraction": 0.6},
        "model": {"kind": "quadratic_mlp", "width": 16},
        "optimizer": ADAMW,
        "arms": [arm(name) if isinstance(name, str) else name for name in arms],
        "seeds": 2,
        "steps": 40,
        "onset": {"train_threshold": 0.5, "test_threshold": 0.4, "hold": 2},
        "evaluation": {"measures": ["relative_flatness", "cdnv", "weight_norm"], "points": 10, "refine": 7},
        **changes,
    }


def spec(arms: Sequence[str | dict[str, Any]] = ("baseline", "held"), **changes: Any) -> StudySpec:
    """The specification."""
    return StudySpec.model_validate(study(arms, **changes))
