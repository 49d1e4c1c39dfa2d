"""The page: what is on it, that it says so when something is missing, and that it is the same every time."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from grokscape.analysis import analyze
from grokscape.report import write_report
from grokscape.report.doses import dose_plates
from grokscape.report.onsets import Outcomes
from grokscape.report.plate import Line, Plate, Points
from grokscape.report.provenance import provenance
from grokscape.report.run import read_run
from grokscape.report.tables import outcome_table
from grokscape.store import RunFolder, RunFolderError


def payload(html: str) -> dict[str, Any]:
    """The data that stand in a page."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert found is not None
    return json.loads(found.group(1))


def test_the_question_and_a_card_per_property_come_first(finished: RunFolder) -> None:
    html = write_report(finished).read_text()
    start = html.index("<main>")
    question = html.index("Does generalisation need flat minima, or collapsed classes?", start)
    verdicts = [html.index(f"Is {name} necessary?", start) for name in ("flatness", "neural collapse")]
    assert question < min(verdicts) < max(verdicts) < html.index('id="outcomes"', start)


def test_the_same_folder_gives_the_same_bytes(finished: RunFolder, tmp_path: Path) -> None:
    first = write_report(finished).read_bytes()
    copy = tmp_path / "finished"
    shutil.copytree(finished.path, copy)
    assert write_report(copy).read_bytes() == first
    assert write_report(finished).read_bytes() == first


def test_the_page_needs_nothing_from_outside_and_is_small(finished: RunFolder) -> None:
    html = write_report(finished).read_text()
    assert len(html.encode()) < 8_000_000
    assert not re.search(r'<(?:script|img|iframe|link)[^>]+(?:src|href)="(?!data:|#)', html)
    assert "@import" not in html


def test_names_from_data_are_text(make_run: Any, tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    arms = [
        {"name": "baseline", "role": "baseline", "interventions": []},
        {
            "name": evil,
            "title": evil,
            "role": "manipulation",
            "interventions": [{"kind": "clamp", "measure": "relative_flatness", "at_least": 3.0}],
        },
    ]
    folder = make_run(tmp_path / "run", arms=arms, seeds=5, name=evil)
    analyze(folder)
    html = write_report(folder).read_text()
    assert "<script>alert" not in html
    assert "<img" not in html
    assert evil in [arm["name"] for arm in payload(html)["trajectories"]["arms"]]


def test_an_unfinished_run_says_so(make_run: Any, tmp_path: Path) -> None:
    html = write_report(make_run(tmp_path / "run", state="interrupted", reached=300)).read_text()
    assert "This run was interrupted: it reached step 300 of 1500." in html
    assert "No verdicts yet." in html
    assert "grokscape analyze" in html


def test_a_run_without_a_single_measurement_gives_a_page(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", {"name": "empty", "arms": []})
    html = write_report(folder).read_text()
    assert "Nothing has been measured yet." in html
    assert "This run has not recorded that it finished" in html


def test_a_run_that_moves_nothing_answers_the_claims_about_order(make_run: Any, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", arms=[{"name": "baseline", "role": "baseline"}], seeds=6)
    claims = {f.subject["claim"]: f.verdict for f in analyze(folder) if f.kind == "dispute" and "claim" in f.subject}
    html = write_report(folder).read_text()
    judged = [text for text, verdict in claims.items() if verdict in ("agrees", "disagrees")]
    assert judged
    for text in judged:
        place = html.index(text, html.index("<main>"))
        assert place < html.index('id="outcomes"')
        glyph = html[html.index("glyph ", place) :].split('"')[0]
        assert glyph == ("glyph full" if claims[text] == "agrees" else "glyph empty")
    assert "Here nothing is moved by hand" in html
    assert "There is no arm beside the baseline" in html


def test_a_study_that_never_memorises_says_so_and_draws_no_empty_panel(make_run: Any, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", seeds=6, train_accuracy=0.97)
    analyze(folder)
    html = write_report(folder).read_text()
    assert "no seed memorised both in the baseline and in another arm" in html
    assert "There is no arm beside the baseline" not in html
    assert "No run memorised, and the time to be foretold starts there." in html
    (plate,) = (plate for plate in dose_plates(read_run(folder)) if plate.key == "dose-cdnv")
    assert isinstance(plate, Plate)
    assert len(plate.panels) == plate.columns == 1
    assert "Right:" not in plate.caption


def test_the_line_through_the_doses_goes_through_their_medians(finished: RunFolder) -> None:
    run = read_run(finished)
    findings = [
        {**f, "data": {**f["data"], "doses": [_unsettled(dose) for dose in f["data"]["doses"]]}}
        for f in run.of_kind("necessity")
    ]
    plates = [plate for plate in dose_plates(replace(run, findings=findings)) if isinstance(plate, Plate)]
    lines = 0
    for layers in (plate.panels[0].layers for plate in plates):
        medians = {(x, y) for mark in layers if isinstance(mark, Points) and mark.label for x, y in zip(mark.x, mark.y)}
        for line in (layer for layer in layers if isinstance(layer, Line)):
            assert set(zip(line.x, line.y)) <= medians
            lines += 1
    assert lines


def _unsettled(dose: dict[str, Any]) -> dict[str, Any]:
    """The same dose with a first seed that is bad and settled nowhere."""
    levels, final = dose["level_per_seed"], dose["final_accuracy_per_seed"]
    return {**dose, "level_per_seed": [None, *levels[1:]], "final_accuracy_per_seed": [0.0, *final[1:]]}


def test_numbers_of_arms_are_those_of_the_analysis(finished: RunFolder) -> None:
    run = read_run(finished)
    table = outcome_table(run, Outcomes.of(run))
    rows = {
        row["arm"]: {head["text"]: cell for head, cell in zip(table["heads"][1:], row["cells"])}
        for row in table["rows"]
    }
    assert rows["kappa30"]["Generalised"] == {"text": "0 of 6", "small": "no median"}
    assert rows["baseline"]["Memorised"]["text"] == "6 of 6"
    assert rows["kappa30"]["Held?"]["text"] == "held"
    last = run.frame.filter(arm="cdnv16", step=1500)["train/cdnv"].median()
    assert float(rows["cdnv16"]["CDNV at the end"]["text"]) == pytest.approx(last, rel=5e-3)
    assert [row["done"] for row in table["rows"]][1] == "κ held ≥ 3 (strength 0.1)"


def test_where_a_run_comes_from_is_told_in_words(finished: RunFolder) -> None:
    run = read_run(finished)
    told = replace(run, status={**run.status, "seconds": 3725.4, "threads": 1, "batched": True})
    facts = {fact["name"]: fact["text"] for fact in provenance(told)["facts"]}
    assert facts["Arms × seeds"] == "6 × 6"
    assert facts["Seeds"] == "initialisation/split 0/0, 1/1, 2/2, 3/3, 4/4, 5/5"
    assert facts["Cost"] == "1 h 02 min"
    assert facts["Device"] == "cpu, 1 thread, all replicas in one batch"
    assert facts["Optimiser"] == "name adamw · lr 0.01 · weight decay 1"
    facts = {fact["name"]: fact["text"] for fact in provenance(replace(run, spec={}, status={}))["facts"]}
    assert {facts[name] for name in ("Cost", "Device", "Versions", "Optimiser")} == {"not recorded"}
    assert facts["State"] == "unknown, step 1500 of an unknown number"


def test_every_measure_on_the_page_leads_to_its_definition(finished: RunFolder) -> None:
    html = write_report(finished).read_text()
    for target in set(re.findall(r'href="#([^"]+)"', html)):
        assert f'id="{target}"' in html, target
    assert "Petzka et al. 2021, Def. 3" in html


def test_trajectories_show_the_median_over_seeds(finished: RunFolder) -> None:
    shown = payload(write_report(finished).read_text())["trajectories"]
    frame = finished.trajectory()
    step = shown["steps"][40]
    values = sorted(frame.filter(arm="cdnv12", step=step)["train/cdnv"].to_list())
    assert shown["columns"]["train/cdnv"]["cdnv12"]["m"][40] == pytest.approx((values[2] + values[3]) / 2, rel=1e-3)


def test_single_seeds_can_be_chosen_only_where_they_are_drawn(make_run: Any, tmp_path: Path) -> None:
    few, many = (write_report(make_run(tmp_path / str(n), seeds=n, every=20)).read_text() for n in (3, 13))
    for words in ('data-choice="seeds"', "thin lines are single seeds"):
        assert words in few
        assert words not in many


def test_500_replicas_stay_small(make_run: Any, tmp_path: Path) -> None:
    html = write_report(make_run(tmp_path / "run", seeds=84, every=5)).read_text()
    assert len(html.encode()) < 8_000_000


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"is .* a run folder"):
        write_report(tmp_path)
