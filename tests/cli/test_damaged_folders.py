"""Damaged, edited and foreign run folders: what the commands say, and what can still be read."""

import json
import shutil

import polars as pl
import pytest

from grokscape.store import RunFolder

FOREIGN = ['{"openapi": "3.0"}', '{"name": "x", "arms": ["a"]}', '{"name": "x", "arms": {"a": 1}}']


@pytest.mark.parametrize("text", FOREIGN)
@pytest.mark.parametrize("command", ["resume", "show", "report", "analyze"])
def test_somebody_elses_spec_is_no_run_folder(grokscape, tmp_path, command, text):
    (tmp_path / "spec.json").write_text(text)
    outcome = grokscape(command, tmp_path)
    assert outcome.code == 1
    assert "spec.json is not a study's: expected a name and a list of named arms" in outcome.err
    assert "Traceback" not in outcome.err


EDITED = [
    ("steps", "12", "'steps' is \"12\""),
    ("arms", [{"name": "baseline", "interventions": {"kind": "clamp"}}], "'arms.0.interventions' is {\"kind\""),
    ("arms", [{"name": "baseline", "interventions": ["clamp"]}], "'arms.0.interventions.0' is \"clamp\""),
    ("arms", [{"name": "baseline", "interventions": [{"measure": "cdnv"}]}], "it holds {\"measure\": \"cdnv\"}"),
    ("arms", [{"name": "baseline", "interventions": [{"kind": "unplug", "step": "9"}]}], "interventions.0.step' is"),
    ("arms", [{"name": "baseline"}, {"name": "held", "testbed": "mnist"}], "'arms.1.testbed' is \"mnist\""),
]


@pytest.mark.parametrize(("entry", "value", "words"), EDITED)
@pytest.mark.parametrize("command", ["resume", "show", "report", "analyze"])
def test_an_entry_of_another_type_in_the_study_of_a_run_is_named(grokscape, reported, tmp_path, command, entry, value,
                                                                   words):
    folder = tmp_path / "run"
    shutil.copytree(reported, folder, ignore=shutil.ignore_patterns("figures", "report.html"))
    spec = json.loads((folder / "spec.json").read_text())
    (folder / "spec.json").write_text(json.dumps({**spec, entry: value}))
    outcome = grokscape(command, folder)
    assert outcome.code == 1
    assert f"{folder / 'spec.json'} is damaged: " in outcome.err
    assert words in outcome.err
    assert "restore it or start the run anew" in outcome.err
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize(("onset", "words"), [
    ("soon", ("onset", "'soon'")), ({"hold": 0}, ("hold", "greater than or equal to 1, got 0")),
])
@pytest.mark.parametrize("command", ["resume", "show", "report", "analyze"])
def test_rules_that_no_study_can_have_are_named(grokscape, reported, tmp_path, command, onset, words):
    folder = shutil.copytree(reported, tmp_path / "run", ignore=shutil.ignore_patterns("figures", "report.html"))
    spec = json.loads((folder / "spec.json").read_text())
    (folder / "spec.json").write_text(json.dumps({**spec, "onset": onset}))
    outcome = grokscape(command, folder)
    assert outcome.code == 1
    for word in (*words, "spec.json"):
        assert word in outcome.err
    assert "Traceback" not in outcome.err


def test_a_spec_of_another_tool_stays_readable(grokscape, reported, tmp_path):
    folder = shutil.copytree(reported, tmp_path / "run", ignore=shutil.ignore_patterns("figures", "report.html"))
    arms = [{"name": "baseline", "interventions": None, "testbed": None}, {"name": "held", "epochs": "many"}]
    verdict = {"note": "theirs", "alpha": None}
    theirs = {"name": "theirs", "seeds": "two", "testbed": "mnist", "onset": None, "verdict": verdict}
    (folder / "spec.json").write_text(json.dumps({**theirs, "arms": arms, "optimizer": ["adam"]}))
    for command in ("show", "analyze"):
        assert grokscape(command, folder).code == 0


@pytest.mark.parametrize("text", ['{"state":', "[]", '{"step": null}', '{"step": 3, "replicas": [null]}'])
def test_a_damaged_status_can_be_done_without(grokscape, stopped, text):
    (stopped / "status.json").write_text(text)
    for command in ("resume", "show", "report"):
        outcome = grokscape(command, stopped)
        assert outcome.code == 1
        assert f"remove it, then go on with: grokscape resume {stopped}" in outcome.err
        assert "Traceback" not in outcome.err
    (stopped / "status.json").unlink()
    assert grokscape("resume", stopped, "--no-report").code == 0
    assert RunFolder.open(stopped).finished


WITHOUT_DATA = (
    '[{"id": "a", "kind": "necessity", "subject": {}, "statement": "", "verdict": "", "estimates": {}, '
    '"n": 1, "test": null, "p": null, "rule": "", "data": 3}]'
)


@pytest.mark.parametrize("text", ['[{"id":', '{"id": 1}', "[1]", '[{"kind": "necessity"}]', WITHOUT_DATA])
def test_damaged_findings_can_be_made_anew(grokscape, finished, text):
    findings = RunFolder.open(finished).findings
    (finished / "findings.json").write_text(text)
    outcome = grokscape("show", finished)
    assert outcome.code == 1
    assert f"make it anew with: grokscape analyze {finished}" in outcome.err
    assert grokscape("analyze", finished).code == 0
    assert RunFolder.open(finished).findings == findings


@pytest.mark.parametrize(("name", "remedy"), [
    ("spec.json", "restore it or start the run anew"),
    ("status.json", "remove it, then go on with: grokscape resume"),
    ("findings.json", "remove it, then make it anew with: grokscape analyze"),
])
def test_a_folder_in_the_place_of_a_file_is_named(grokscape, reported, tmp_path, name, remedy):
    folder = shutil.copytree(reported, tmp_path / "run", ignore=shutil.ignore_patterns("figures", "report.html"))
    (folder / name).unlink()
    (folder / name).mkdir()
    outcome = grokscape("show", folder)
    assert outcome.code == 1
    assert f"{folder / name} cannot be read (Is a directory): expected a JSON file; {remedy}" in outcome.err
    assert "Traceback" not in outcome.err


def test_a_file_that_cannot_be_read_is_named(grokscape, tmp_path):
    (tmp_path / "spec.json").symlink_to(tmp_path / "spec.json")
    outcome = grokscape("show", tmp_path)
    assert outcome.code == 1
    assert f"{tmp_path / 'spec.json'} cannot be read (Too many levels of symbolic links)" in outcome.err


def test_a_folder_where_findings_are_to_be_written_is_named(grokscape, finished):
    (finished / "findings.json").unlink()
    (finished / "findings.json").mkdir()
    outcome = grokscape("analyze", finished)
    assert outcome.code == 1
    assert f"there is a folder at {finished / 'findings.json'}, expected a file or nothing; remove it" in outcome.err
    assert [path.name for path in finished.glob(".findings*")] == []


@pytest.mark.parametrize("name", ["trajectory", "checkpoints"])
def test_a_file_where_a_run_is_to_be_written_is_named(grokscape, stopped, name):
    for folder in ("trajectory", "checkpoints"):
        shutil.rmtree(stopped / folder)
    (stopped / name).touch()
    outcome = grokscape("resume", stopped)
    assert outcome.code == 1
    assert f"there is a file at {stopped / name}, expected a folder or nothing; remove it" in outcome.err


def test_a_file_where_figures_are_to_be_written_is_named(grokscape, finished):
    (finished / "figures").touch()
    outcome = grokscape("report", finished)
    assert outcome.code == 1
    assert outcome.err == (
        f"grokscape: there is a file at {finished / 'figures'}, expected a folder or nothing; remove it\n"
    )


def test_findings_of_another_version_can_be_made_anew(grokscape, reported, tmp_path):
    folder = RunFolder(shutil.copytree(reported, tmp_path / "run"))
    findings = folder.findings
    folder.write_findings([{**finding, "later": 1} for finding in findings])
    outcome = grokscape("resume", folder.path)
    assert outcome.code == 1
    assert "findings.json is of another version" in outcome.err
    assert f"make it anew with: grokscape analyze {folder.path}" in outcome.err
    assert "Traceback" not in outcome.err
    assert grokscape("analyze", folder.path).code == 0
    assert folder.findings == findings


def test_a_part_that_no_run_wrote_is_named(grokscape, finished):
    pl.DataFrame({"a": [1]}).write_parquet(finished / "trajectory" / "part-99999.parquet")
    outcome = grokscape("show", finished)
    assert outcome.code == 1
    assert "part-99999.parquet is damaged" in outcome.err
    assert "replica" in outcome.err


def test_a_part_that_is_there_twice_is_not_counted_twice(grokscape, finished):
    part = next((finished / "trajectory").iterdir())
    (finished / "trajectory" / "part-99999.parquet").write_bytes(part.read_bytes())
    outcome = grokscape("show", finished)
    assert outcome.code == 1
    assert "holds step 0 of replica 0 twice" in outcome.err
    assert "remove those that do not belong there" in outcome.err
