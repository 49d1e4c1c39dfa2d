"""Cox's proportional hazards with covariates that change in time, for few covariates and many fits.

The partial likelihood only looks at the moments at which somebody has an event, so a fit works on one row per run at
risk at each such moment. Ties: Breslow. A weak ridge penalty keeps coefficients finite where a covariate ranks
perfectly.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from grokscape.analysis.frames import Array, Flags

RIDGE = 0.1
_STEPS = 30  # of Newton's method, at most


@dataclass(frozen=True)
class RiskSets:
    """Runs at risk at each moment of an event, set by set.

    Attributes:
        run: (M,) which run a row belongs to.
        event: (M,) whether the run has its event at this moment.
        starts: (S,) first row of each set.
    """

    run: NDArray[np.int64]
    event: Flags
    starts: NDArray[np.int64]

    @property
    def set_of_row(self) -> NDArray[np.int64]:
        """(M,) set of each row."""
        return np.repeat(np.arange(len(self.starts)), np.diff(np.r_[self.starts, len(self.run)]))

    def pairs(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows with an event, each beside every row of its set without one."""
        rows = np.split(np.arange(len(self.run)), self.starts[1:])
        met = [np.meshgrid(one[self.event[one]], one[~self.event[one]]) for one in rows]
        event, other = (np.concatenate([grids[side].ravel() for grids in met]) for side in (0, 1))
        return event, other

    def keep(self, chosen: Flags) -> tuple["RiskSets", NDArray[np.int64]]:
        """Only some rows, sets without an event or without a choice left out; and the places of the rows kept."""
        index = self.set_of_row
        events = np.bincount(index[chosen & self.event], minlength=len(self.starts))
        size = np.bincount(index[chosen], minlength=len(self.starts))
        rows = np.flatnonzero(chosen & ((events > 0) & (size > 1))[index])
        index = index[rows]
        starts = np.flatnonzero(np.r_[True, index[1:] != index[:-1]]) if len(index) else np.array([], dtype=np.int64)
        return RiskSets(self.run[rows], self.event[rows], starts), rows


def fit(sets: RiskSets, covariates: Array, ridge: float = RIDGE) -> Array:
    """Coefficients that maximise the penalised partial likelihood.

    Args:
        sets: risk sets with M rows.
        covariates: (M, p), finite, of standard deviation about one.
        ridge: half the penalty per squared coefficient.

    Returns:
        (p,) log hazard ratios per unit; NaN if there is no event.
    """
    p = covariates.shape[1]
    if not sets.event.any():
        return np.full(p, np.nan)
    deaths = np.add.reduceat(sets.event.astype(float), sets.starts)
    total = covariates[sets.event].sum(axis=0)
    beta = np.zeros(p)
    for _ in range(_STEPS):
        gradient, information = _derivatives(sets, covariates, beta, deaths)
        step = np.linalg.solve(information + ridge * np.eye(p), total - gradient - ridge * beta)
        beta = beta + step * min(1.0, 2.0 / max(np.abs(step).max(), 1e-300))
        if np.abs(step).max() < 1e-8:
            break
    return beta


def _derivatives(sets: RiskSets, x: Array, beta: Array, deaths: Array) -> tuple[Array, Array]:
    """Expected covariate sum (p,) and information (p, p) at `beta`."""
    score = x @ beta
    top = np.maximum.reduceat(score, sets.starts)
    weight = np.exp(score - np.repeat(top, np.diff(np.r_[sets.starts, len(score)])))
    mass = np.add.reduceat(weight, sets.starts)
    mean = np.add.reduceat(weight[:, None] * x, sets.starts) / mass[:, None]
    squares = np.add.reduceat(weight[:, None, None] * x[:, :, None] * x[:, None, :], sets.starts) / mass[:, None, None]
    information = squares - mean[:, :, None] * mean[:, None, :]
    return (deaths[:, None] * mean).sum(axis=0), (deaths[:, None, None] * information).sum(axis=0)


def concordance(sets: RiskSets, covariates: Array, group: NDArray[np.int64], betas: Array) -> tuple[float, int]:
    """How often a run that has its event is ranked above another at risk: concordant pairs (ties half), and all pairs.

    Args:
        sets: risk sets with M rows.
        covariates: (M, p).
        group: (M,) group of runs that a row belongs to.
        betas: (G, G, p) coefficients by which a run of one group is compared with one of another; NaN: not at all.
    """
    event, other = sets.pairs()
    gap = ((covariates[event] - covariates[other]) * betas[group[event], group[other]]).sum(axis=1)
    gap = gap[~np.isnan(gap)]
    return float((gap > 0).sum() + 0.5 * (gap == 0).sum()), len(gap)
