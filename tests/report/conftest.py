"""Run folders with made-up trajectories of known shape, so that the report can be tested without training anything."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grokscape.analysis import analyze
from grokscape.store import RunFolder

MEASURES = {
    "accuracy": ("fit", "higher", "0 to 1", "share of samples whose largest logit is the label", "Accuracy"),
    "loss": ("fit", "lower", "nats", "mean cross-entropy", "Loss"),
    "relative_flatness": ("flatness", "lower", "≥ 0", "Petzka et al. 2021, Def. 3", "Relative flatness κ"),
    "relative_flatness_bound": ("flatness", "lower", "≥ 0", "Walter et al. 2024", "Surrogate κ̄"),
    "cdnv": ("collapse", "lower", "≥ 0", "Galanti et al. 2022, Eq. 1", "CDNV"),
    "rnc1": ("collapse", "lower", "≥ 0", "Sakamoto & Sato 2026", "RNC1"),
    "nc1": ("collapse", "lower", "≥ 0", "Papyan et al. 2020", "NC1"),
}


def held(name: str, title: str, measure: str, at_least: float, **more: Any) -> dict[str, Any]:
    """An arm with a clamp, as spec.json holds it."""
    clamp = {"kind": "clamp", "measure": measure, "at_least": at_least, "strength": 0.1}
    return {"name": name, "title": title, "role": "manipulation", "interventions": [clamp], **more}


ARMS = [
    {"name": "baseline", "title": "Baseline", "role": "baseline", "interventions": []},
    held("kappa3", "κ held ≥ 3", "relative_flatness", 3.0),
    held("kappa30", "κ held ≥ 30", "relative_flatness", 30.0),
    held("cdnv12", "CDNV held ≥ 1.2", "cdnv", 1.2),
    held("cdnv16", "CDNV held ≥ 1.6", "cdnv", 1.6),
    held("loss", "Loss held ≥ 0.02", "loss", 0.02, role="control", control="matched-level"),
]
GROKS_AT = {"baseline": 680, "kappa3": 1600, "kappa30": 9000, "cdnv12": 860, "cdnv16": 1300, "loss": 600}
FLOORS = {
    "kappa3": ("relative_flatness", 3.0),
    "kappa30": ("relative_flatness", 30.0),
    "cdnv12": ("cdnv", 1.2),
    "cdnv16": ("cdnv", 1.6),
    "loss": ("loss", 0.02),
}


def columns() -> dict[str, dict[str, str]]:
    """Descriptions of the columns, as a run writes them."""
    rows = {f"{split}/{name}": row for name, row in MEASURES.items() for split in ("train", "test")}
    rows["params/weight_norm"] = ("norm", "lower", "≥ 0", "Euclidean norm of all parameters", "Weight norm")
    described = {}
    for column, row in rows.items():
        split, _, name = column.partition("/")
        about = zip(("property", "direction", "unit", "source", "title"), row, strict=True)
        described[column] = {"measure": name, "split": split, **dict(about)}
    return described


def curves(arm: str, steps: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """One replica: a sharp rise of train accuracy, a late one of test accuracy, measures that follow."""
    memorised, generalised = 40 * rng.lognormal(0, 0.1), GROKS_AT.get(arm, 700) * rng.lognormal(0, 0.12)
    learned = 1 / (1 + np.exp(-(steps - memorised) / 8))
    seen = 0.5 * (1 + np.tanh((steps - generalised + 60) / 50))
    noise = rng.lognormal(0, 0.05, (4, len(steps)))
    values = {
        "train/accuracy": learned,
        "test/accuracy": 0.03 + 0.3 * learned + 0.67 * seen * learned,
        "train/loss": (3.4 * (1 - learned) + 2e-2 * (1 - seen) + 1e-4) * noise[0],
        "train/relative_flatness": (90 * learned * (1 - seen) + 0.05 + 2 * (1 - learned)) * noise[1],
        "train/cdnv": (0.2 + 2.5 * np.exp(-steps / 400)) * noise[2],
    }
    values["test/loss"] = (4 * (1 - seen) + 1e-3) * noise[3]
    if floor := FLOORS.get(arm):
        column, level = f"train/{floor[0]}", floor[1]
        values[column] = np.maximum(values[column], level * noise[0])
    values["train/relative_flatness_bound"] = values["train/relative_flatness"] * 90
    values["train/nc1"] = values["train/cdnv"] * 0.7
    values["train/rnc1"] = 0.05 + 0.9 * np.exp(-steps / 300)
    for name in ("relative_flatness", "relative_flatness_bound", "cdnv", "nc1", "rnc1"):
        values[f"test/{name}"] = values[f"train/{name}"] * 1.3
    values["params/weight_norm"] = 20 + 60 * learned * np.exp(-steps / 900)
    return values


def synthetic_run(
    path: Path,
    *,
    seeds: int = 6,
    steps: int = 1500,
    every: int = 10,
    arms: list[dict[str, Any]] | None = None,
    state: str = "finished",
    reached: int | None = None,
    name: str = "synthetic",
    train_accuracy: float = 1.0,
) -> RunFolder:
    """A run folder with made-up trajectories; `reached` cuts it short, `train_accuracy` is the best there is."""
    arms = ARMS if arms is None else arms
    spec = {
        "name": name,
        "title": "Modular addition, quadratic network",
        "question": "Does generalisation need flat minima, or collapsed classes?",
        "testbed": {"kind": "modular", "operation": "x+y", "p": 31, "train_fraction": 0.5},
        "model": {"kind": "quadratic", "width": 128},
        "optimizer": {"name": "adamw", "lr": 0.01, "weight_decay": 1.0},
        "arms": arms,
        "seeds": seeds,
        "steps": steps,
        "onset": {"train_threshold": 0.99, "test_threshold": 0.95, "hold": 3},
        "verdict": {"accuracy_margin": 0.05},
    }
    folder = RunFolder.create(path, spec)
    grid = np.arange(0, (reached or steps) + 1, every)
    rows: dict[str, list[Any]] = {}
    for replica, (arm, seed) in enumerate((a["name"], s) for a in arms for s in range(seeds)):
        keys = {"replica": replica, "arm": arm, "seed": seed, "init_seed": seed, "split_seed": seed}
        values = curves(arm, grid, np.random.default_rng([replica, seed]))
        values["train/accuracy"] *= train_accuracy
        for key, value in keys.items():
            rows.setdefault(key, []).extend([value] * len(grid))
        rows.setdefault("step", []).extend(grid.tolist())
        for column, value in values.items():
            rows.setdefault(column, []).extend(value.tolist())
    folder.append(rows, columns())
    folder.write_status(
        state=state,
        step=int(grid[-1]),
        steps=steps,
        seconds=12.5,
        device="cpu",
        versions={"grokscape": "0.1.0", "torch": "2.13.0"},
        command=f"grokscape run {name} --seeds {seeds}",
    )
    return folder


@pytest.fixture(scope="session")
def make_run() -> Callable[..., RunFolder]:
    """The maker of synthetic run folders."""
    return synthetic_run


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished and analysed run, six arms of six seeds; only reports and figures may be added."""
    folder = synthetic_run(tmp_path_factory.mktemp("runs") / "finished")
    analyze(folder)
    return folder
