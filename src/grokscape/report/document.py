"""The report of one run: what stands on the page, in the order in which it is read."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from grokscape.report import glossary, wording
from grokscape.report.html import pair, render, summary_json
from grokscape.report.interactive import DASHES, legend_entries, plotly_figure, themed
from grokscape.report.onsets import Outcomes, hero
from grokscape.report.plate import Missing, Plate
from grokscape.report.run import Run, read_run
from grokscape.report.trajectories import DEFAULT_MEASURES, SEEDS_SHOWN, is_logarithmic, shown_steps, summarise
from grokscape.store import RunFolder, write_bytes

LEAD = (
    "In grokking, a network first memorises its training samples and only much later gets unseen ones right. What "
    "generalisation needs must arrive with that second moment, and holding it back must hold generalisation back. Each arm "
    "below holds one thing back, or pushes it, and is compared seed by seed with a baseline that shares its initialisation "
    "and its data."
)
SPLIT_TITLES = {"train": "training", "test": "held-out", "cross": "held-out around training means", "params": "parameters"}


def write_report(folder: RunFolder | str | Path) -> Path:
    """Write `report.html` into a run folder and return its path.

    The page needs no network, and its bytes depend on the folder's content alone.

    Raises:
        RunFolderError: there is no run folder, or one of its files is damaged.
    """
    run = read_run(folder)
    path = run.path / "report.html"
    write_bytes(path, page(run).encode())
    return path


def page(run: Run) -> str:
    """The report of a run as HTML."""
    found = Outcomes.of(run)
    first = hero(run, found)
    sections: list[dict[str, Any]] = []
    plates = [first, *(item for section in sections for item in section["plates"])]
    panels, trajectory_payload = trajectories(run, found)
    context = {
        "run": run, "question": str(run.spec.get("question") or "Which geometric property does generalisation need?"), "lead": LEAD,
        "alarms": alarms(run), "cards": cards(run), "no_verdicts": no_verdicts(run), "hero": first,
        "outcomes": outcome_table(run, found), "trajectories": panels, "sections": sections, "replicas": replica_table(run, found),
        "findings": findings(run), "provenance": provenance(run), "glossary": glossary.entries(run, found.rules),
        "contents": contents(sections),
        "legends": {item.key: legend_entries(item) for item in plates if isinstance(item, Plate)},
    }
    payload = {
        "plates": {item.key: plotly_figure(item) for item in plates if isinstance(item, Plate)},
        "trajectories": trajectory_payload,
    }
    return render("report.html.j2", context, payload)


def contents(sections: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Entries of the table of contents."""
    first = [("verdicts", "Verdicts"), ("outcomes", "Outcomes"), ("trajectories", "Trajectories")]
    last = [("replicas", "Every replica"), ("findings", "Findings, rules"), ("provenance", "How it was made"),
            ("definitions", "Definitions")]
    middle = [(str(section["id"]), str(section["short"])) for section in sections]
    return [{"id": id_, "title": title} for id_, title in first + middle + last]


def alarms(run: Run) -> list[str]:
    """What a reader must know before believing anything else."""
    return []


def no_verdicts(run: Run) -> str:
    """Why there are no verdict cards."""
    if not run.findings:
        return f"The run has not been analysed. Run `grokscape analyze {run.path.name}`, then write the report again."
    return "The analysis judged no property: verdicts need a baseline and at least one arm that manipulates a property."


GLYPHS = {"consistent with necessary": "full", "not necessary": "empty"}


def cards(run: Run) -> list[dict[str, Any]]:
    """One card per judged property."""
    made = []
    for finding in run.of_kind("necessity"):
        subject = finding.get("subject") or {}
        property_ = str(subject.get("property") or "")
        measure = run.measure_title(str(subject.get("measure"))) if subject.get("measure") else ""
        verdict = str(finding.get("verdict") or "not judged")
        reason = str((finding.get("data") or {}).get("reason") or "")
        made.append({
            "heading": f"Is {property_ or measure} necessary?" + (f" Measured by {measure}" if property_ and measure else ""),
            "verdict": wording.sentence(verdict), "glyph": GLYPHS.get(verdict, "half"),
            "statement": f"{wording.sentence(reason)}." if reason else finding.get("statement", ""),
            "numbers": wording.estimates(finding, run)[:6], "basis": wording.basis(finding),
            "rule": finding.get("rule") or "No rule was recorded.", "anchor": wording.anchor(finding.get("id")),
            "hue": themed(wording.property_colour(property_)),
        })
    return made


def outcome_table(run: Run, found: Outcomes) -> dict[str, Any]:
    """Arms × outcomes."""
    measures = [m for m in DEFAULT_MEASURES if m not in ("accuracy",) and m in run.measures()]
    heads = [
        {"text": "Arm", "link": None, "words": False}, {"text": "What was done", "link": None, "words": True},
        {"text": "Memorised", "link": "def-onset", "words": False}, {"text": "Generalised", "link": "def-onset", "words": False},
        {"text": "Final test accuracy", "link": "def-final-accuracy", "words": False},
        *({"text": f"{run.measure_title(m)}, at the end", "link": f"def-{m}", "words": False} for m in measures),
    ]
    rows = [{"arm": arm.name, "title": arm.title, "cells": _outcome_cells(run, found, arm.name, measures)} for arm in run.arms]
    caption = "Counts are seeds; below them, the median step. Measures are medians over seeds on training samples at the last evaluation."
    return {"heads": heads, "rows": rows, "caption": caption}


def _outcome_cells(run: Run, found: Outcomes, arm: str, measures: Sequence[str]) -> list[dict[str, Any]]:
    rows = found.rows(arm)
    cells = [{"text": run.arm_by_name[arm].intervention or "nothing", "small": "", "words": True}]
    for what in ("memorised", "generalised"):
        median = found.median_onset(arm, what)
        small = f"step {median:.0f}" if median is not None else "no median"
        cells.append({"text": f"{rows[what].count()} of {rows.height}", "small": small if rows.height else "", "words": False})
    final = rows["final_accuracy"].median() if rows.height else None
    cells.append({"text": "–" if final is None else f"{final:.1%}", "small": "", "words": False})
    for measure in measures:
        value = _final_value(run, arm, measure)
        cells.append({"text": wording.number(value), "small": "", "words": False})
    return cells


def _final_value(run: Run, arm: str, measure: str) -> float | None:
    split = "train" if "train" in run.measures()[measure] else run.measures()[measure][0]
    rows = run.frame.filter(pl.col("arm") == arm).drop_nulls(f"{split}/{measure}").group_by("replica").last()
    return rows[f"{split}/{measure}"].median() if rows.height else None  # pyright: ignore[reportReturnType]


def trajectories(run: Run, found: Outcomes) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the template and the script need to draw trajectories."""
    steps = shown_steps(run)
    measures = run.measures() if len(steps) else {}
    order = [m for m in DEFAULT_MEASURES if m in measures] + [m for m in measures if m not in DEFAULT_MEASURES]
    columns: dict[str, Any] = {}
    described: dict[str, Any] = {}
    for measure in order:
        summaries = {split: summarise(run, f"{split}/{measure}", steps) for split in measures[measure]}
        columns |= {f"{split}/{measure}": {arm: summary_json(s) for arm, s in per_arm.items()}
                    for split, per_arm in summaries.items()}
        every = [s for per_arm in summaries.values() for s in per_arm.values()]
        described[measure] = {"title": run.measure_title(measure), "splits": measures[measure], "percent": measure == "accuracy",
                              "log": measure != "accuracy" and is_logarithmic(every)}
    onsets = {arm.name: {"m": found.median_onset(arm.name, "memorised"), "g": found.median_onset(arm.name, "generalised")}
              for arm in run.arms}
    arms = [{"name": arm.name, "title": arm.title, "colour": pair(arm.colour), "dash": DASHES[arm.dash]} for arm in run.arms]
    log_steps = run.last_step > 200
    payload = {"steps": steps.tolist(), "columns": columns, "measures": described, "arms": arms, "onsets": onsets,
               "splits": SPLIT_TITLES, "log_steps": log_steps}
    return _panels(run, order, measures, len(steps), log_steps), payload


def _panels(run: Run, order: Sequence[str], measures: Mapping[str, Sequence[str]], steps: int, log_steps: bool) -> dict[str, Any]:
    splits = [{"name": s, "title": SPLIT_TITLES[s]} for s in ("train", "test", "cross") if any(s in v for v in measures.values())]
    few = max((run.frame.filter(pl.col("arm") == arm.name)["replica"].n_unique() for arm in run.arms), default=0) <= SEEDS_SHOWN
    caption = (
        "All panels share one axis of steps: point anywhere, or move the slider, to read every panel at that step; drag to "
        "zoom all, double-click to zoom out. Lines are medians over seeds, bands reach from the 10th to the 90th percentile"
        + (", thin lines are single seeds" if few else "")
        + ". Triangles on the axis mark the median onset of memorisation (hollow) and of generalisation (filled)."
    )
    panels = [
        {"measure": m, "title": run.measure_title(m), "shown": m in DEFAULT_MEASURES,
         "alt": f"{run.measure_title(m)} over training steps, one line per arm; the table below reads it at a chosen step"}
        for m in order
    ]
    missing = Missing("no-trajectories", "Trajectories", "Nothing has been measured yet.",
                      "Write the report again once the run has reached its first evaluation.")
    return {"panels": panels, "splits": splits, "caption": caption, "last_index": max(steps - 1, 0), "log_steps": log_steps,
            "missing": missing}


def replica_table(run: Run, found: Outcomes) -> dict[str, Any]:
    """One row per replica, for sorting."""
    names = {"replica": "Replica", "arm": "Arm", "seed": "Seed", "memorised": "Memorised at step", "generalised": "Generalised at step",
             "delay": "Delay", "final_train_accuracy": "Final train accuracy", "final_accuracy": "Final test accuracy",
             "diverged": "Diverged"}
    rows = []
    for row in found.table.iter_rows(named=True):
        cells = []
        for name in names:
            value = row[name]
            text = run.title_of(value) if name == "arm" else _cell(value)
            cells.append({"text": text, "value": text if name == "arm" else "" if value is None else value})
        rows.append(cells)
    return {"heads": [{"text": title} for title in names.values()], "rows": rows,
            "caption": f"{len(rows)} replicas. Press a heading to sort by it; “–” means that it never happened."}


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() and abs(value) > 1 else f"{value:.4g}"
    return "–" if value is None else str(value)


def findings(run: Run) -> dict[str, Any]:
    """Every finding with its rule."""
    entries = [
        {"anchor": wording.anchor(f.get("id")), "statement": f.get("statement", ""), "numbers": wording.estimates(f, run),
         "rule": f.get("rule", ""), "basis": ", ".join(x for x in (str(f.get("kind", "")).replace("_", " "), f.get("verdict"), wording.basis(f)) if x)}
        for f in run.findings
    ]
    caption = "Everything the analysis found, with the rule by which it follows from the numbers." if entries else no_verdicts(run)
    return {"entries": entries, "caption": caption}


def provenance(run: Run) -> dict[str, Any]:
    """Versions, device, seeds, cost and the command that reproduces the run."""
    status = run.status
    versions = status.get("versions")
    facts = [
        ("Reproduce it", status.get("command") or f"grokscape run {run.name}", True),
        ("State", f"{status.get('state', 'unknown')}, step {status.get('step', run.last_step)} of "
                  f"{status.get('steps') or run.spec.get('steps') or 'unknown'}", False),
        ("Seeds", _text(run.spec.get("seeds")), False),
        ("Device", _text(status.get("device")), False),
        ("Time", f"{wording.number(status['seconds'])} s" if status.get("seconds") is not None else "not recorded", False),
        ("Versions", ", ".join(f"{k} {v}" for k, v in sorted(versions.items())) if isinstance(versions, Mapping) else _text(versions), False),
        ("Testbed", _text(run.spec.get("testbed")), False), ("Model", _text(run.spec.get("model")), False),
        ("Optimiser", _text(run.spec.get("optimizer")), False), ("Rules of verdicts", _text(run.spec.get("verdict")), False),
    ]
    spec = json.dumps(run.spec, indent=1, ensure_ascii=False)
    return {"facts": [{"name": n, "text": t, "code": c} for n, t, c in facts], "spec": spec}


def _text(value: object) -> str:
    if value in (None, {}, []):
        return "not recorded"
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_text(v)}" for k, v in value.items())
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
