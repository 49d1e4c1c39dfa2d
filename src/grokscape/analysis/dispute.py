"""Which measure goes with generalisation? The candidates of three papers, ranked on the same seeds."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from grokscape.analysis.finding import Finding
from grokscape.analysis.record import Record
from grokscape.plural import counted

MEASURES = ("relative_flatness", "relative_flatness_bound", "cdnv", "nc1", "nc1_ratio", "rnc1", "rnc1_max", "ildr")
RULE = (
    "A claim about order is judged by the lead-lag finding of its measure (position above one half: with "
    "generalisation; leads: before it, Holm over measures), a claim about need by the necessity verdict of its "
    "property. Agrees or disagrees only where that finding is clear; else undecided."
)
Findings = dict[str, Finding]


@dataclass(frozen=True)
class Claim:
    """What a paper says, and how a study answers it.

    Attributes:
        name: short key.
        source: the paper.
        text: the claim in our words.
        judge: findings in; "agrees", "disagrees" or "undecided" and the reason out.
    """

    name: str
    source: str
    text: str
    judge: Callable[[Findings], tuple[str, str]]


def _side(found: Finding | None) -> tuple[str, str]:
    """Whether a measure falls with generalisation, with memorisation, with neither, or not clearly with either."""
    if found is None:
        return "unknown", "not measured"
    if not found.data["enough"]:
        return "unknown", f"only {counted(found.data['judged'], 'baseline run')} generalised"
    if not found.data["started"]:
        return "unknown", "no baseline run memorised"
    if found.verdict == "does not move":
        return "memorisation", "it does not move after memorisation"
    if 2 * found.data["fell"] <= found.data["moved"]:
        rose = found.data["moved"] - found.data["fell"]
        moved = counted(found.data["moved"], "run")
        return "neither", f"it rises after memorisation in {rose} of the {moved} in which it moves"
    place = found.estimates["position"]
    if place["low"] is None:
        return "unknown", "too few seeds, or all alike"
    if place["low"] > 0.5:
        return "generalisation", f"its transition sits at {place['value']:.2f} of the way to generalisation"
    if place["high"] < 0.5:
        return "memorisation", f"its transition sits at {place['value']:.2f} of the way to generalisation"
    return "unknown", f"its transition sits at {place['value']:.2f} of the way, not clearly on either side"


def _first(findings: Findings, *columns: str) -> Finding | None:
    return next((findings[f"lead_lag/{column}"] for column in columns if f"lead_lag/{column}" in findings), None)


def _at(expected: str, *columns: str) -> Callable[[Findings], tuple[str, str]]:
    def judge(findings: Findings) -> tuple[str, str]:
        """Whether the measure leads generalisation or trails it, held against what is expected."""
        side, why = _side(_first(findings, *columns))
        return ("undecided" if side == "unknown" else "agrees" if side == expected else "disagrees"), why
    return judge


def _need(property_name: str, expected: str, opposite: tuple[str, ...]) -> Callable[[Findings], tuple[str, str]]:
    def judge(findings: Findings) -> tuple[str, str]:
        """The verdict on the property's necessity, held against what is expected."""
        found = findings.get(f"necessity/{property_name}")
        if found is None:
            return "undecided", "not manipulated"
        answer = "agrees" if found.verdict == expected else "disagrees" if found.verdict in opposite else "undecided"
        return answer, f"the verdict is “{found.verdict}”"
    return judge


def _leads(*columns: str) -> Callable[[Findings], tuple[str, str]]:
    def judge(findings: Findings) -> tuple[str, str]:
        """Whether the measure moves before test accuracy does."""
        found = _first(findings, *columns)
        if found is None or not (found.data["enough"] and found.data["started"]):
            return "undecided", _side(found)[1]
        if found.verdict in ("no clear order", "does not move"):
            return "undecided", str(found.verdict)
        return ("agrees" if found.verdict == "leads" else "disagrees"), f"it {found.verdict}"
    return judge


_HAN = "Han et al. 2025, arXiv 2509.17738"
_SAKAMOTO = "Sakamoto & Sato 2026, arXiv 2509.20829"
CLAIMS = (
    Claim("flatness-necessary", _HAN, "Flatness is necessary for generalisation.",
          _need("flatness", "consistent with necessary", ("not necessary", "belongs to the manipulation"))),
    Claim("collapse-not-necessary", _HAN, "Neural collapse is not necessary for generalisation.",
          _need("collapse", "not necessary", ("consistent with necessary",))),
    Claim("flatness-with-generalisation", _HAN, "Flatness arrives with generalisation.",
          _at("generalisation", "train/relative_flatness", "train/relative_flatness_bound")),
    Claim("collapse-with-memorisation", _HAN, "Collapse of the training features (CDNV) arrives with memorisation.",
          _at("memorisation", "train/cdnv")),
    Claim("population-variance", _SAKAMOTO, "The within-class variance of the population, normalised without class "
          "separation (RNC1), falls with generalisation.", _at("generalisation", "cross/rnc1", "test/rnc1")),
    Claim("held-out-ratio-leads", "arXiv 2604.20923", "A held-out ratio of distances between and within classes "
          "changes before generalisation.", _leads("test/ildr", "cross/ildr")),
)


def ranking(record: Record, findings: Findings) -> list[dict[str, Any]]:
    """The disputed measures on every split, best first by concordance beside the loss, then by closeness in time."""
    rows = []
    for column in record.measured():
        about = record.columns[column]
        lead, risk = findings.get(f"lead_lag/{column}"), findings.get(f"hazard/{column}")
        if about["measure"] not in MEASURES or lead is None:
            continue
        need = findings.get(f"necessity/{about['property']}/{about['measure']}") or next(
            (item for item in findings.values() if item.kind == "necessity"
             and item.subject.get("measure") == about["measure"]), None)
        row = risk.data["row"] if risk else {}
        rows.append({"column": column, "measure": about["measure"], "split": about["split"], "title": about["title"],
                     "order": lead.verdict, "lag": lead.estimates["lag"], "log_lag": lead.estimates["log lag"],
                     "position": lead.estimates["position"], "concordance": row.get("concordance"),
                     "concordance_adjusted": row.get("concordance_adjusted"), "gain": row.get("gain"),
                     "necessity": need.verdict if need else None})
    return sorted(rows, key=lambda row: (-(row["concordance_adjusted"] or 0.0), abs(row["log_lag"]["value"] or 99.0)))


def dispute(record: Record, found: list[Finding]) -> list[Finding]:
    """One finding with the ranking, one per claim."""
    findings = {item.id: item for item in found}
    rows = ranking(record, findings)
    if not rows:
        return []
    n = max((findings[f"lead_lag/{row['column']}"].n for row in rows), default=0)
    best, told = rows[0], rows[0]["concordance_adjusted"]
    first = f"Of {len(rows)} disputed measures on the same seeds, {best['title']} ({best['split']}) ranks first by"
    if told is not None:
        text = f"{first} how well it foretells generalisation beside the train loss (concordance {told:.2f})"
    elif best["log_lag"]["value"] is not None:
        text = f"{first} how near to generalisation it moves"
    else:
        text = f"Nothing ranks the {len(rows)} disputed measures: no run tells how near to generalisation they move"
    result = [Finding("dispute", "dispute", {}, text + ".", None, n=n, rule=RULE, data={"ranking": rows})]
    for claim in CLAIMS:
        answer, why = claim.judge(findings)
        result.append(Finding(
            f"dispute/{claim.name}", "dispute", {"claim": claim.text, "source": claim.source},
            f"“{claim.text}” ({claim.source}): this study "
            f"{answer if answer != 'undecided' else 'leaves it undecided'}; {why}.", answer, n=n, rule=RULE))
    return result
