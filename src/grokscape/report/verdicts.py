"""What the analysis concluded, for the page: cards of verdicts, alarms, and every finding with its rule."""

from collections.abc import Mapping
from typing import Any

from grokscape.plural import counted
from grokscape.report import wording
from grokscape.report.interactive import themed
from grokscape.report.run import Run
from grokscape.symbols import SPLITS


def no_verdicts(run: Run) -> str:
    """Why there are no verdict cards."""
    if not run.findings:
        return f"The run has not been analysed. Run `grokscape analyze {run.path.name}`, then write the report again."
    return "The analysis judged no property: verdicts need a baseline and at least one arm that manipulates a property."


PROPERTY_TITLES = {"collapse": "neural collapse", "fit": "a low training loss", "norm": "a small weight norm"}
_VERDICT_TITLES = {"belongs to the manipulation": "the harm belongs to the manipulation"}
_GLYPHS = {"consistent with necessary": "full", "not necessary": "empty"}


def cards(run: Run) -> list[dict[str, Any]]:
    """What stands first: one card per judged property, or, where none was manipulated, one per claim of the papers."""
    found = [_property_card(run, finding) for finding in run.of_kind("necessity") if stands_for_its_property(finding)]
    return found or [_claim_card(run, f) for f in run.of_kind("dispute") if f["verdict"] in ("agrees", "disagrees")]


def stands_for_its_property(finding: Mapping[str, Any]) -> bool:
    """Whether a verdict of need is that of the measure which stands for its property."""
    return bool(finding["id"] == f"necessity/{finding['subject']['property']}")


def judged(finding: Mapping[str, Any], property_: str) -> dict[str, str]:
    """How a verdict on a property looks: its words, the glyph beside them, its colour."""
    verdict = finding["verdict"]
    return {
        "verdict": wording.sentence(_VERDICT_TITLES.get(verdict, verdict)),
        "glyph": _GLYPHS.get(verdict, "half"),
        "hue": themed(wording.property_colour(property_)),
    }


def _property_card(run: Run, finding: Mapping[str, Any]) -> dict[str, Any]:
    property_, measure = finding["subject"]["property"], run.measure_title(finding["subject"]["measure"])
    return {
        **judged(finding, property_),
        "heading": f"Is {PROPERTY_TITLES.get(property_, property_)} necessary?",
        "link": "def-necessary",
        "statement": f"{wording.sentence(run.readable(finding['data']['reason']))}.",
        "groups": wording.grouped(wording.estimates(finding, run)),
        "basis": _basis(finding),
        "rule": f"Measured by {measure}. Tests: {finding['test']}. {finding['rule']}",
        "anchor": wording.anchor(finding["id"]),
        "sufficient": _sufficiency(run, property_),
    }


def _claim_card(run: Run, finding: Mapping[str, Any]) -> dict[str, Any]:
    """A paper's claim about when a property arrives, and how this run answers; it moved nothing by hand."""
    text, verdict = finding["subject"]["claim"], finding["verdict"]
    property_ = "flatness" if "latness" in text else "collapse"
    why = finding["statement"].rpartition("; ")[2]
    return {
        "heading": text,
        "link": wording.finding_anchor(finding),
        "verdict": f"This run {verdict}",
        "glyph": "full" if verdict == "agrees" else "empty",
        "statement": f"{wording.sentence(run.readable(why))} Claimed by {finding['subject']['source']}.",
        "groups": [],
        "basis": _basis(finding),
        "rule": finding["rule"],
        "anchor": wording.anchor(finding["id"]),
        "sufficient": None,
        "hue": themed(wording.property_colour(property_)),
    }


def _basis(finding: Mapping[str, Any]) -> list[str]:
    p = finding["p"]
    return [part for part in (wording.seeds(finding["n"]), "" if p is None else wording.p_value(p)) if part]


def _sufficiency(run: Run, property_: str) -> dict[str, str] | None:
    """The verdict on whether a property suffices, for the foot of its card."""
    for finding in run.of_kind("sufficiency"):
        if finding["id"] == f"sufficiency/{property_}":
            return {"verdict": finding["verdict"], "anchor": wording.anchor(finding["id"])}
    return None


def dispute(run: Run) -> dict[str, Any] | None:
    """What three papers claim and how this study answers, and the ranking of the disputed measures; None if absent."""
    found = run.of_kind("dispute")
    if not found:
        return None
    claims = [f for f in found if "claim" in f["subject"]]
    ranking: list[Any] = next((f["data"]["ranking"] for f in found if "ranking" in f["data"]), [])
    rows = [
        {
            "claim": f["subject"]["claim"],
            "source": f["subject"]["source"],
            "answer": f["verdict"],
            "why": f["statement"].rpartition("; ")[2].rstrip("."),
            "anchor": wording.anchor(f["id"]),
        }
        for f in claims
    ]
    return {"claims": rows, "ranking": [_ranked(run, row) for row in ranking if _told(row)]}


def _told(row: dict[str, Any]) -> bool:
    """Whether anything is known of how the measure goes with generalisation."""
    return row["concordance_adjusted"] is not None or row["lag"]["value"] is not None


def _ranked(run: Run, row: dict[str, Any]) -> dict[str, str]:
    lag = row["lag"]["value"]
    return {
        "measure": row["measure"],
        "title": f"{run.measure_short(row['measure'])}, {SPLITS.get(row['split'], row['split'])}",
        "order": row["order"],
        "lag": "–" if lag is None else f"{lag:+.0f}".replace("-", "−"),
        "position": wording.number(row["position"]["value"]),
        "concordance": wording.number(row["concordance_adjusted"]),
        "necessity": row["necessity"] or "not manipulated",
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
    groups = []
    for kind, title in KIND_TITLES.items():
        if found := run.of_kind(kind):
            rules = list(dict.fromkeys(f["rule"] for f in found))
            entries = [_entry(finding, run, rules) for finding in found]
            groups.append({"title": title, "rule": rules[0] if len(rules) == 1 else "", "entries": entries})
    caption = "Everything the analysis found, with the rule by which it follows from the numbers."
    return {"groups": groups, "caption": caption if groups else no_verdicts(run)}


def _entry(finding: dict[str, Any], run: Run, rules: list[str]) -> dict[str, Any]:
    return {
        "anchor": wording.anchor(finding["id"]),
        "statement": run.readable(finding["statement"]),
        "verdict": finding["verdict"] or "",
        "numbers": wording.estimates(finding, run),
        "rule": finding["rule"] if len(rules) > 1 else "",
        "basis": wording.basis(finding),
    }


def alarms(run: Run) -> list[str]:
    """What a reader must know before believing anything else: controls that failed, replicas that broke down."""
    known = [f for f in run.of_kind("control") if f["subject"]["control"] != "matched-level"]
    messages = [run.readable(f["statement"]) for f in known if f["verdict"] == "failed"]
    gone = [replica for replica in run.status.get("replicas") or [] if replica.get("diverged_at") is not None]
    if gone:
        arms = ", ".join(dict.fromkeys(run.title_of(replica.get("arm")) for replica in gone))
        messages.append(f"{counted(len(gone), 'replica')} diverged ({arms}), which counts as not generalising.")
    return messages
