"""One finding of an analysis: what was asked, what came out, and by which rule."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from grokscape.analysis.estimation import plain


@dataclass(frozen=True)
class Finding:
    """A statement with the numbers and the rule behind it, in values that are ready for JSON (see `plain`).

    Attributes:
        id: unique within a run, such as "necessity/flatness".
        kind: "onset", "survival", "lead_lag", "hazard", "manipulation", "necessity", "sufficiency", "convergence",
            "control", "dispute", "theory" or "pooled".
        subject: what it is about, such as {"arm": …} or {"property": …, "measure": …}.
        statement: one sentence of plain English.
        verdict: "not necessary", "consistent with necessary", "belongs to the manipulation", "inconclusive", "held",
            "failed", …; None where nothing is judged.
        estimates: name → {"value", "low", "high", "unit"}; None for a number that does not exist.
        n: number of independent replicas (seeds) behind it.
        test: name of the statistical test, if any.
        p: its p value after correction, if any.
        rule: how the verdict follows from the numbers.
        data: what a figure of it needs (curves, tables).
    """

    id: str
    kind: str
    subject: dict[str, Any]
    statement: str
    verdict: str | None = None
    estimates: dict[str, dict[str, Any]] = field(default_factory=dict)
    n: int = 0
    test: str | None = None
    p: float | None = None
    rule: str = ""
    data: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for entry in fields(self):
            object.__setattr__(self, entry.name, plain(getattr(self, entry.name)))

    def to_dict(self) -> dict[str, Any]:
        """The finding as one value."""
        return asdict(self)
