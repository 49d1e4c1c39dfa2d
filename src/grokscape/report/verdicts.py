"""What the analysis concluded, for the page: cards of verdicts, alarms, and every finding with its rule."""

from typing import Any

from grokscape.report import wording
from grokscape.report.interactive import themed
from grokscape.report.run import Run


def alarms(run: Run) -> list[str]:
    """What a reader must know before believing anything else."""
    return []


def no_verdicts(run: Run) -> str:
    """Why there are no verdict cards."""
    if not run.findings:
        return f"The run has not been analysed. Run `grokscape analyze {run.path.name}`, then write the report again."
    return "The analysis judged no property: verdicts need a baseline and at least one arm that manipulates a property."


PROPERTY_TITLES = {"collapse": "neural collapse", "fit": "a low training loss", "norm": "a small weight norm"}
GLYPHS = {"consistent with necessary": "full", "not necessary": "empty"}


def cards(run: Run) -> list[dict[str, Any]]:
    """One card per judged property: of several measures of one property, the one that stands for it."""
    made = []
    for finding in run.of_kind("necessity"):
        subject = finding.get("subject") or {}
        property_ = str(subject.get("property") or "")
        if property_ and finding.get("id") not in (None, f"necessity/{property_}"):
            continue
        measure = run.measure_title(str(subject.get("measure"))) if subject.get("measure") else ""
        verdict = str(finding.get("verdict") or "not judged")
        reason = str((finding.get("data") or {}).get("reason") or "")
        made.append(
            {
                "heading": f"Is {PROPERTY_TITLES.get(property_, property_) or measure} necessary?",
                "measure": measure,
                "verdict": wording.sentence(verdict),
                "glyph": GLYPHS.get(verdict, "half"),
                "statement": f"{wording.sentence(reason)}." if reason else finding.get("statement", ""),
                "groups": wording.grouped(wording.estimates(finding, run)),
                "basis": wording.basis(finding),
                "rule": finding.get("rule") or "No rule was recorded.",
                "anchor": wording.anchor(finding.get("id")),
                "hue": themed(wording.property_colour(property_)),
            }
        )
    return made


def findings(run: Run) -> dict[str, Any]:
    """Every finding with its rule."""
    entries = [
        {
            "anchor": wording.anchor(f.get("id")),
            "statement": f.get("statement", ""),
            "numbers": wording.estimates(f, run),
            "rule": f.get("rule", ""),
            "basis": ", ".join(
                x for x in (str(f.get("kind", "")).replace("_", " "), f.get("verdict"), wording.basis(f)) if x
            ),
        }
        for f in run.findings
    ]
    caption = (
        "Everything the analysis found, with the rule by which it follows from the numbers."
        if entries
        else no_verdicts(run)
    )
    return {"entries": entries, "caption": caption}
