"""What the analysis concluded, for the page: cards of verdicts, alarms, and every finding with its rule."""

from collections.abc import Mapping
from typing import Any

from grokscape.plural import counted
from grokscape.report import wording
from grokscape.report.interactive import themed
from grokscape.report.run import SPLITS, Run


def no_verdicts(run: Run) -> str:
    """Why there are no verdict cards."""
    if not run.findings:
        return f"The run has not been analysed. Run `grokscape analyze {run.path.name}`, then write the report again."
    return "The analysis judged no property: verdicts need a baseline and at least one arm that manipulates a property."


PROPERTY_TITLES = {"collapse": "neural collapse", "fit": "a low training loss", "norm": "a small weight norm"}
VERDICT_TITLES = {"belongs to the manipulation": "the harm belongs to the manipulation"}
GLYPHS = {"consistent with necessary": "full", "not necessary": "empty"}


def cards(run: Run) -> list[dict[str, Any]]:
    """What stands first: one card per judged property, or, where none was manipulated, one per claim of the papers."""
    judged = [_property_card(run, finding) for finding in run.of_kind("necessity") if _stands_for_its_property(finding)]
    return judged or [
        _claim_card(run, f) for f in run.of_kind("dispute") if f.get("verdict") in ("agrees", "disagrees")
    ]


def _stands_for_its_property(finding: Mapping[str, Any]) -> bool:
    property_ = (finding.get("subject") or {}).get("property")
    return not property_ or finding.get("id") in (None, f"necessity/{property_}")


def _property_card(run: Run, finding: Mapping[str, Any]) -> dict[str, Any]:
    subject = finding.get("subject") or {}
    property_ = str(subject.get("property") or "")
    measure = run.measure_title(str(subject.get("measure"))) if subject.get("measure") else ""
    verdict = str(finding.get("verdict") or "not judged")
    reason = run.readable(str((finding.get("data") or {}).get("reason") or ""))
    tests = f"Tests: {finding['test']}." if finding.get("test") else ""
    rule = [f"Measured by {measure}." if measure else "", tests, str(finding.get("rule") or "No rule was recorded.")]
    return {
        "heading": f"Is {PROPERTY_TITLES.get(property_, property_) or measure} necessary?",
        "link": "def-necessary",
        "verdict": wording.sentence(VERDICT_TITLES.get(verdict, verdict)),
        "glyph": GLYPHS.get(verdict, "half"),
        "statement": f"{wording.sentence(reason)}." if reason else run.readable(str(finding.get("statement", ""))),
        "groups": wording.grouped(wording.estimates(finding, run)),
        "basis": _basis(finding),
        "rule": " ".join(part for part in rule if part),
        "anchor": wording.anchor(finding.get("id")),
        "sufficient": _sufficiency(run, property_),
        "hue": themed(wording.property_colour(property_)),
    }


def _claim_card(run: Run, finding: Mapping[str, Any]) -> dict[str, Any]:
    """A paper's claim about when a property arrives, and how this run answers; it moved nothing by hand."""
    text, verdict = str(finding["subject"]["claim"]), str(finding["verdict"])
    property_ = "flatness" if "latness" in text else "collapse"
    why = str(finding.get("statement", "")).rpartition("; ")[2]
    return {
        "heading": text,
        "link": wording.finding_anchor(finding),
        "verdict": f"This run {verdict}",
        "glyph": "full" if verdict == "agrees" else "empty",
        "statement": f"{wording.sentence(run.readable(why))} Claimed by {finding['subject'].get('source', 'a paper')}.",
        "groups": [],
        "basis": _basis(finding),
        "rule": str(finding.get("rule") or "No rule was recorded."),
        "anchor": wording.anchor(finding.get("id")),
        "sufficient": None,
        "hue": themed(wording.property_colour(property_)),
    }


def _basis(finding: Mapping[str, Any]) -> list[str]:
    p = finding.get("p")
    return [part for part in (wording.seeds(finding.get("n")), "" if p is None else wording.p_value(p)) if part]


def _sufficiency(run: Run, property_: str) -> dict[str, str] | None:
    """The verdict on whether a property suffices, for the foot of its card."""
    for finding in run.of_kind("sufficiency"):
        if finding.get("id") == f"sufficiency/{property_}":
            return {"verdict": str(finding.get("verdict") or "not judged"), "anchor": wording.anchor(finding["id"])}
    return None


def dispute(run: Run) -> dict[str, Any] | None:
    """What three papers claim and how this study answers, and the ranking of the disputed measures; None if absent."""
    found = run.of_kind("dispute")
    claims = [f for f in found if (f.get("subject") or {}).get("claim")]
    ranking: list[Any] = next((f["data"]["ranking"] for f in found if (f.get("data") or {}).get("ranking")), [])
    if not claims:
        return None
    rows = [
        {
            "claim": f["subject"]["claim"],
            "source": f["subject"].get("source", ""),
            "answer": str(f.get("verdict")),
            "why": str(f.get("statement", "")).rpartition("; ")[2].rstrip("."),
            "anchor": wording.anchor(f.get("id")),
        }
        for f in claims
    ]
    return {"claims": rows, "ranking": [_ranked(run, row) for row in ranking]}


def _ranked(run: Run, row: dict[str, Any]) -> dict[str, str]:
    lag, position = row.get("lag") or {}, row.get("position") or {}
    return {
        "measure": row["measure"],
        "title": f"{run.measure_short(row['measure'])}, {SPLITS.get(row['split'], row['split'])}",
        "order": str(row.get("order") or "–"),
        "lag": "–" if lag.get("value") is None else f"{lag['value']:+.0f}".replace("-", "−"),
        "position": wording.number(position.get("value")),
        "concordance": wording.number(row.get("concordance_adjusted")),
        "necessity": str(row.get("necessity") or "not manipulated"),
    }


KIND_TITLES = {
    "necessity": "Necessity",
    "sufficiency": "Sufficiency",
    "convergence": "Agreement of different hands",
    "manipulation": "Were the manipulations held?",
    "control": "Controls",
    "onset": "Onsets",
    "survival": "Delays",
    "dispute": "The dispute",
    "theory": "Theory",
    "lead_lag": "Lead and lag",
    "hazard": "What foretells generalisation",
    "pooled": "Pooled over runs",
}


def findings(run: Run) -> dict[str, Any]:
    """Every finding with its rule, by kind: {"caption", "groups": [{"title", "rules", "entries"}]}."""
    kinds = [*KIND_TITLES, *(str(f.get("kind")) for f in run.findings if f.get("kind") not in KIND_TITLES)]
    groups = []
    for kind in dict.fromkeys(kinds):
        found = run.of_kind(kind)
        if found:
            rules = list(dict.fromkeys(str(f["rule"]) for f in found if f.get("rule")))
            entries = [_entry(finding, run, rules) for finding in found]
            title = KIND_TITLES.get(kind, wording.sentence(kind.replace("_", " ")))
            groups.append({"title": title, "rule": rules[0] if len(rules) == 1 else "", "entries": entries})
    caption = "Everything the analysis found, with the rule by which it follows from the numbers."
    return {"groups": groups, "caption": caption if groups else no_verdicts(run)}


def _entry(finding: dict[str, Any], run: Run, rules: list[str]) -> dict[str, Any]:
    return {
        "anchor": wording.anchor(finding.get("id")),
        "statement": run.readable(finding.get("statement", "")),
        "verdict": finding.get("verdict") or "",
        "numbers": wording.estimates(finding, run),
        "rule": finding.get("rule", "") if len(rules) > 1 else "",
        "basis": wording.basis(finding),
    }


def alarms(run: Run) -> list[str]:
    """What a reader must know before believing anything else: controls that failed, replicas that broke down."""
    known = [
        f for f in run.of_kind("control") if (f.get("subject") or {}).get("control") not in (None, "matched-level")
    ]
    messages = [run.readable(str(f["statement"])) for f in known if f.get("verdict") == "failed"]
    gone = [replica for replica in run.status.get("replicas") or [] if replica.get("diverged_at") is not None]
    if gone:
        arms = ", ".join(dict.fromkeys(run.title_of(replica.get("arm")) for replica in gone))
        messages.append(
            f"{counted(len(gone), 'replica')} diverged ({arms}), which counts as not generalising."
        )
    return messages
