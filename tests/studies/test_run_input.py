"""What `grokscape.run` takes for a study, and what it refuses before there is a folder."""

import json

import pytest
import torch

import grokscape as gs
import tiny
from grokscape.workflow import specification


@pytest.mark.parametrize("form", ["path", "text", "mapping", "specification"])
def test_a_study_is_a_specification_in_any_form(tmp_path, form):
    study = tiny.study(steps=2)
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(study))
    given = {"path": path, "text": str(path), "mapping": study, "specification": tiny.spec(steps=2)}[form]
    assert gs.run(given, tmp_path / "run", report=False).spec == tiny.spec(steps=2)


@pytest.mark.parametrize(("study", "text"), [
    ("mine.json", "there is no file mine.json; expected a preset's name or a JSON file"),
    ({"name": "tiny"}, "testbed"),
    (None, "valid dictionary or instance of StudySpec"),
])
def test_no_study_no_folder(tmp_path, study, text):
    with pytest.raises(ValueError, match=text):
        gs.run(study, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("launcher", ["inline", "processes"])
def test_a_number_of_workers_that_is_none_is_refused_before_there_is_a_folder(tmp_path, launcher):
    with pytest.raises(ValueError, match="expected workers of 1 or more, got -1; leave them out"):
        gs.run(tiny.spec(), tmp_path / "run", launcher=launcher, workers=-1)
    assert not (tmp_path / "run").exists()


def test_one_tracker_may_be_named_without_a_list(tmp_path):
    pytest.importorskip("tensorboard")
    run = gs.run(tiny.spec(steps=2), tmp_path / "run", trackers="tensorboard", report=False, device=torch.device("cpu"))
    assert sorted(place.name for place in (run.path / "tensorboard").iterdir()) == ["baseline", "held"]


def test_where_the_data_lie_goes_to_a_testbed_that_reads_them():
    assert specification("fig16", data="data/sst5").testbed.source == "data/sst5"
    assert specification("fig16").testbed.source != "data/sst5"
    with pytest.raises(ValueError, match=r"'quickstart' makes its own data \(modular\); leave `--data x` out"):
        specification("quickstart", data="x")


@pytest.mark.parametrize("role", ["manipulation", "baseline"])
def test_what_a_control_shows_is_said_of_controls_alone(role):
    with pytest.raises(ValueError, match=f"this arm's role is '{role}'; give it role='control', or leave control out"):
        gs.Arm(name="loss", role=role, control="matched-level")
