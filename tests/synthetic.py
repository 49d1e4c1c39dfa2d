"""Made-up studies whose truth is known: run folders and frames without any training.

    study = synthetic.study(seeds=8)                       # a `Study` with frame, columns, spec, status
    folder = synthetic.write(tmp_path / "run", study)      # the same as a `RunFolder`

Each arm says what its runs do: `delay_factor`, `never`, `final_accuracy`, `floor` (measure → level below which it
does not fall), `diverge` (seeds that break down), `memorise`, `geometry` (training measures fall as if it generalised,
though it never does). Everything else follows the shape of real grokking: train accuracy saturates, κ peaks and falls
when test accuracy rises, cdnv falls from the start, the loss falls throughout.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from grokscape.analysis import Record
from grokscape.store import RunFolder

COLUMNS: dict[str, dict[str, Any]] = {
    name: {"measure": name.split("/")[1], "split": name.split("/")[0], "property": prop, "direction": direction,
           "unit": unit, "source": "made up", "title": title}
    for name, prop, direction, unit, title in [
        ("train/accuracy", "fit", "higher", "share", "Train accuracy"),
        ("test/accuracy", "fit", "higher", "share", "Test accuracy"),
        ("train/loss", "fit", "lower", "nats", "Train loss"),
        ("test/loss", "fit", "lower", "nats", "Test loss"),
        ("train/relative_flatness", "flatness", "lower", "", "Relative flatness κ"),
        ("train/relative_flatness_bound", "flatness", "lower", "", "Flatness bound κ̄"),
        ("train/cdnv", "collapse", "lower", "", "CDNV"),
        ("test/cdnv", "collapse", "lower", "", "CDNV, held-out"),
        ("train/rnc1", "collapse", "lower", "", "RNC1"),
        ("test/rnc1", "collapse", "lower", "", "RNC1, held-out"),
        ("test/ildr", "collapse", "higher", "", "ILDR, held-out"),
        ("params/weight_norm", "norm", "neither", "", "Weight norm"),
    ]
}


@dataclass(frozen=True)
class ArmTruth:
    """What the runs of an arm do, and how the spec describes the arm."""

    name: str
    role: str = "manipulation"
    control: str = ""
    interventions: Sequence[Mapping[str, Any]] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
    delay_factor: float = 1.0
    never: bool = False
    geometry: bool = False
    memorise: bool = True
    final_accuracy: float = 1.0
    floor: Mapping[str, float] = field(default_factory=dict)
    diverge: Sequence[int] = ()

    def spec(self) -> dict[str, Any]:
        """The arm as spec.json holds it."""
        return {"name": self.name, "title": self.name.replace("-", " ").capitalize(), "role": self.role,
                "interventions": [dict(one) for one in self.interventions],
                **({"control": self.control} if self.control else {}), **self.extra}


@dataclass(frozen=True)
class Study:
    """A made-up study."""

    frame: pl.DataFrame
    columns: dict[str, dict[str, Any]]
    spec: dict[str, Any]
    status: dict[str, Any]

    def record(self, frame: pl.DataFrame | None = None) -> Record:
        """What the analysis reads, with the study's rows or with others."""
        return Record.of(self.frame if frame is None else frame, self.spec, self.columns, self.status)


def clamp(measure: str, at_least: float | None = None, at_most: float | None = None, **more: Any) -> dict[str, Any]:
    """A clamp as spec.json holds it."""
    return {"kind": "clamp", "measure": measure, "at_least": at_least, "at_most": at_most, "strength": 0.1, "start": 0,
            "until": None, "relative_to": None, "options": {}} | more


BASELINE = ArmTruth("baseline", role="baseline")
QUICKSTART = (
    BASELINE,
    ArmTruth("flatness-held-30", interventions=[clamp("relative_flatness", 30.0)], never=True, final_accuracy=0.64,
             floor={"relative_flatness": 30.0, "relative_flatness_bound": 900.0}),
    ArmTruth("bound-held-2000", interventions=[clamp("relative_flatness_bound", 2000.0)], never=True,
             final_accuracy=0.6, floor={"relative_flatness": 33.0, "relative_flatness_bound": 2000.0}),
    ArmTruth("collapse-held", interventions=[clamp("cdnv", 1.2)], floor={"cdnv": 1.2, "rnc1": 0.6}),
    ArmTruth("loss-held", role="control", control="matched-level", interventions=[clamp("loss", 2e-2)],
             floor={"loss": 2e-2}),
    ArmTruth("random-labels", role="control", control="random-labels", never=True, final_accuracy=1 / 31, geometry=True,
             extra={"testbed": {"random_labels": True}}),
)


def study(arms: Sequence[ArmTruth] = QUICKSTART, seeds: int = 8, steps: int = 1500, every: int = 10, seed: int = 0,
          extra_measures: int = 0, delay: float = 500.0, spread: float = 0.2,
          verdict: Mapping[str, Any] | None = None) -> Study:
    """Simulate a study.

    Args:
        arms: what each arm does; the first is the baseline.
        seeds: runs per arm; a seed's runs share half the variance of their log delay.
        steps: last step.
        every: steps between evaluations.
        seed: of the simulation.
        extra_measures: further columns of noise, `train/noise_0` and so on.
        delay: median delay of the baseline in steps.
        spread: standard deviation of a run's log delay.
        verdict: overrides of the spec's rules.
    """
    generator = np.random.default_rng(seed)
    grid = np.arange(0, steps + 1, every)
    shared = generator.normal(0, spread * np.sqrt(0.5), seeds)
    frames, replicas = [], []
    for place, arm in enumerate(arms):
        own = generator.normal(0, spread * np.sqrt(0.5), seeds)
        memorised = 40 * np.exp(generator.normal(0, 0.1, seeds))
        late = delay * arm.delay_factor * np.exp(shared + own)
        block = _runs(arm, grid, memorised, memorised + late, generator, extra_measures)
        numbers = np.arange(seeds) + place * seeds
        keys = {"replica": np.repeat(numbers, len(grid)), "arm": [arm.name] * (seeds * len(grid)),
                "seed": np.repeat(np.arange(seeds), len(grid)), "init_seed": np.repeat(np.arange(seeds), len(grid)),
                "split_seed": np.repeat(np.arange(seeds), len(grid)), "step": np.tile(grid, seeds)}
        frames.append(pl.DataFrame(keys | {name: values.ravel() for name, values in block.items()}))
        replicas += [{"replica": int(number), "arm": arm.name, "seed": one,
                      "diverged_at": steps // 4 if one in arm.diverge else None} for one, number in enumerate(numbers)]
    columns = COLUMNS | {f"train/noise_{n}": {"measure": f"noise_{n}", "split": "train", "property": "other",
                         "direction": "neither", "unit": "", "source": "made up", "title": f"Noise {n}"}
                         for n in range(extra_measures)}
    return Study(pl.concat(frames), columns, _spec(arms, seeds, steps, verdict),
                 {"state": "finished", "step": steps, "replicas": replicas})


def _spec(arms: Sequence[ArmTruth], seeds: int, steps: int, verdict: Mapping[str, Any] | None) -> dict[str, Any]:
    return {"name": "synthetic", "title": "A made-up study", "question": "Does the analysis find what was put in?",
            "testbed": {"kind": "modular", "operation": "x+y", "p": 31, "train_fraction": 0.5, "random_labels": False},
            "model": {"kind": "quadratic"}, "optimizer": {"kind": "adamw", "lr": 0.01, "weight_decay": 1.0},
            "arms": [arm.spec() for arm in arms], "seeds": seeds, "steps": steps,
            "onset": {"train_threshold": 0.99, "test_threshold": 0.95, "hold": 3}, "verdict": dict(verdict or {})}


def _runs(arm: ArmTruth, grid: np.ndarray, memorised: np.ndarray, generalised: np.ndarray,
          generator: np.random.Generator, extra: int) -> dict[str, np.ndarray]:
    """Columns of one arm, (seeds, evaluations) each."""
    t, tm, tg = grid[None, :].astype(float), memorised[:, None], generalised[:, None]
    noise = lambda size: np.exp(generator.normal(0, size, (len(memorised), len(grid))))  # noqa: E731
    rise = 1 / (1 + np.exp(-(t - tm) / (0.05 * tm) - 5))
    turn = 1 / (1 + np.exp(-(t - tg) / (0.05 * tg) - 3))
    early = 0 * t if arm.never else 1 / (1 + np.exp(-(t - 0.7 * tg) / (0.05 * tg)))
    inner = turn if arm.geometry or not arm.never else np.zeros_like(turn)
    turn = np.zeros_like(turn) if arm.never else turn
    low = 1 / 31
    reached = np.clip(arm.final_accuracy + (arm.final_accuracy < 1) * generator.normal(0, 0.02, tm.shape), 0, 1)
    drift = (reached - low) * np.clip(t / grid[-1], 0, 1) if arm.never else 0 * t
    loss = 3.4 * np.exp(-t / tm * 4) + 2e-3 * (1 - inner) + 1e-6
    columns = {
        "train/accuracy": low + (1 - low) * rise * (1.0 if arm.memorise else 0.5),
        "test/accuracy": low + (reached - low) * turn + drift,
        "train/loss": np.maximum(loss, arm.floor.get("loss", 0)) * noise(0.02),
        "test/loss": 5 * (1 - turn) + 1e-4 * noise(0.1),
    }
    shapes = {
        "train/relative_flatness": ("relative_flatness", 0.1 + 60 * rise * (1 - inner)),
        "train/relative_flatness_bound": ("relative_flatness_bound", 5 + 3000 * rise * (1 - inner)),
        "train/cdnv": ("cdnv", 0.2 + 3 * np.exp(-t / tm)), "test/cdnv": ("cdnv", 0.3 + 3 * (1 - turn)),
        "train/rnc1": ("rnc1", 0.1 + 0.8 * np.exp(-t / tm)), "test/rnc1": ("rnc1", 0.15 + 0.8 * (1 - turn)),
        "test/ildr": ("ildr", 1 + 5 * early), "params/weight_norm": ("weight_norm", 20 + 20 * rise * (1 - inner)),
    }
    for name, (measure, values) in shapes.items():
        columns[name] = np.maximum(values, arm.floor.get(measure, 0)) * noise(0.03)
    for number in range(extra):
        columns[f"train/noise_{number}"] = noise(1.0)
    broken = np.isin(np.arange(len(memorised)), list(arm.diverge))[:, None] & (t >= grid[-1] // 4)
    return {name: np.where(broken, np.nan, values) for name, values in columns.items()}


def write(path: Path, made: Study, parts: int = 2) -> RunFolder:
    """Write a study as a run folder, its trajectory in some parts by step."""
    folder = RunFolder.create(path, made.spec)
    edges = np.linspace(0, int(made.frame["step"].max()) + 1, parts + 1)
    for low, high in pairwise(edges):
        rows = made.frame.filter((pl.col("step") >= low) & (pl.col("step") < high))
        folder.append(rows.to_dict(as_series=False), made.columns)
    folder.write_status(**made.status)
    return folder


HELD = ArmTruth("held", interventions=[clamp("cdnv", 1.5)], floor={"cdnv": 1.5})
RANDOM: dict[str, Any] = {"role": "control", "control": "random-labels", "extra": {"testbed": {"random_labels": True}}}


def record_of(*arms: ArmTruth, change: Mapping[str, pl.Expr] | None = None, **options: Any) -> Record:
    """A made-up study of a baseline and these arms, with columns changed, read as the analysis reads it."""
    made = study([BASELINE, *arms], **options)
    return made.record(made.frame.with_columns(**(change or {})))
