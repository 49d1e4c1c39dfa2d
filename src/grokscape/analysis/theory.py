"""What exact neural collapse would make of relative flatness, beside what was measured.

Under exact collapse (features equal their class means; centred means a simplex of K vectors of norm M; w_c = λ(μ_c −
μ_G)) every class has, with ε = exp(−λM²K/(K−1)),

    κ = mean_c‖μ_c‖² · λ²M² · (1 − q²),   q = (1−ε)/(1+(K−1)ε),   1 − q² = Kε(2+(K−2)ε)/(1+(K−1)ε)²,

of which κ ≤ λ²K³M⁴ε/(1+(K−1)ε)² is the bound of Han et al. 2025, Prop. 5.3 (for means without offset). Collapse fixes
the shape and not λ: κ falls because λ grows.

Columns of the trajectory that it reads: `train/relative_flatness`, `train/collapse_radius` (M, root mean square of
‖μ_c − μ_G‖), `train/collapse_scale` (λ, least squares of the centred head on the centred means), `train/mean_offset`
(‖μ_G‖), and, for the distance from collapse, whichever of nc1, nc2_equinorm, nc2_equiangular, nc3, nc4 there are.
"""

from typing import Any

import numpy as np
from scipy.special import expit

from grokscape.analysis.controls import number_of_classes
from grokscape.analysis.estimation import bootstrap_interval, mean_and_error
from grokscape.analysis.finding import Finding
from grokscape.analysis.frames import Array
from grokscape.analysis.manipulation import final_level, log_ratio
from grokscape.analysis.onsets import final
from grokscape.analysis.record import Record
from grokscape.plural import rounded

COLUMNS = ("train/relative_flatness", "train/collapse_radius", "train/collapse_scale", "train/mean_offset")
ASSUMPTIONS = ("train/nc1", "train/nc2_equinorm", "train/nc2_equiangular", "train/nc3", "train/nc4")


def collapse_flatness(classes: int, radius: Array, scale: Array, offset: Array) -> Array:
    """κ under exact collapse.

    Args:
        classes: K.
        radius: M, norm of the centred class means.
        scale: λ, the head over the centred class means.
        offset: ‖μ_G‖, norm of the global mean.
    """
    right, wrong = _probabilities(classes, radius, scale)
    shape = classes * wrong * (2 * right + (classes - 2) * wrong)
    return (radius**2 + offset**2) * scale**2 * radius**2 * shape


def collapse_bound(classes: int, radius: Array, scale: Array) -> Array:
    """The bound of Prop. 5.3 on κ under exact collapse without an offset mean."""
    right, wrong = _probabilities(classes, radius, scale)
    return scale**2 * classes**3 * radius**4 * right * wrong


def _probabilities(classes: int, radius: Array, scale: Array) -> tuple[Array, Array]:
    """Of the label and of each other class, under exact collapse: 1/(1 + (K−1)ε) and ε/(1 + (K−1)ε)."""
    odds = scale * radius**2 * classes / (classes - 1) - np.log(classes - 1)
    return expit(odds), expit(-odds) / (classes - 1)


def theory(record: Record) -> list[Finding]:
    """Measured κ over the exact collapse value and the bound over measured κ, along training, in the baseline."""
    classes = number_of_classes(record)
    if classes is None or classes < 2 or any(name not in record.panel for name in COLUMNS):
        return []
    measured, radius, scale, offset = (record.series(name) for name in COLUMNS)
    exact, bound = collapse_flatness(classes, radius, scale, offset), collapse_bound(classes, radius, scale)
    rows = record.panel.rows(record.baseline.name)
    interval: dict[str, Any] = {"confidence": 1 - record.rules.alpha, "resamples": record.rules.bootstrap}
    ratios = {"measured over exact collapse": (measured, exact), "bound over measured": (bound, measured)}
    estimates = {}
    for name, (top, bottom) in ratios.items():
        logs = final(log_ratio(top, bottom)[rows], record.rules.final_evaluations)
        found = bootstrap_interval(mean_and_error, logs[~np.isnan(logs)], unit="factor, at the end", **interval)
        estimates[name] = {key: np.exp(value) if key != "unit" and value is not None else value
                           for key, value in found.items()}
    distances = {name: final_level(record, name)[rows] for name in ASSUMPTIONS if name in record.panel}
    curves = {"steps": record.panel.steps[rows], "measured": measured[rows], "exact": exact[rows], "bound": bound[rows]}
    text = "Neither ratio could be computed" if estimates["measured over exact collapse"]["value"] is None else \
        f"At the end of training the baseline's relative flatness is " \
        f"{rounded(estimates['measured over exact collapse']['value'])} times what exact collapse with its radius " \
        f"and scale would give, and the bound of Han et al. on the latter is " \
        f"{rounded(estimates['bound over measured']['value'])} times what is measured"
    return [Finding("theory", "theory", {"classes": classes}, text + ".", None, estimates, len(rows),
                    rule="Geometric mean over seeds of ratios at the last evaluations; interval: bootstrap over seeds.",
                    data={"curves": curves, "distance_from_collapse": distances})]
