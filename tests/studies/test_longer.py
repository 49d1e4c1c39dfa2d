"""A run that is given more steps goes on as if it had had them from the start, measured on another grid."""

import itertools
import json
import shlex

import polars as pl
import pytest

import tiny
from grokscape.cli import app
from grokscape.store import RunFolder, RunFolderError, write_json
from grokscape.studies import train
from grokscape.studies.launch import lengthen
from grokscape.studies.launchers import Inline, Order, launch
from grokscape.training import Interrupted
from grokscape.workflow import load, resume

STEPS = 40
ARMS = ("baseline", "held", "promoted", "since step 10")
EVALUATION = {**tiny.study()["evaluation"], "every": STEPS // 2}  # both are measured at step 40


def run_of(path, spec, **options):
    folder = RunFolder.create(path, spec.model_dump(mode="json"))
    train(spec, folder, **options)
    return folder


def weights(folder):
    return sorted((folder.path / "checkpoints").glob("*.safetensors"))[-1].read_bytes()


def assert_one_run_went_on(folder, whole, start, stop):
    """The whole run's weights, and its numbers wherever both were measured, every replica once at a step."""
    assert folder.status["state"] == "finished"
    assert folder.status["step"] == folder.status["steps"] == folder.spec["steps"] == stop
    rows, other = folder.trajectory(), whole.trajectory()
    assert not rows.select("replica", "step").is_duplicated().any()
    both = rows.join(other, on=["replica", "step"], how="semi").sort("replica", "step")
    assert both.equals(other.join(rows, on=["replica", "step"], how="semi").sort("replica", "step"))
    assert both.filter(pl.col("step") > start)["step"].n_unique() > 1


@pytest.mark.parametrize(("batch_size", "early_stop"), [(None, False), (8, False), (8, True)])
def test_it_is_the_run_that_had_them_from_the_start(tmp_path, batch_size, early_stop):
    settings = {"batch_size": batch_size, "early_stop": early_stop, "evaluation": EVALUATION}
    if early_stop:
        settings["onset"] = {"train_threshold": 0.5, "test_threshold": 1.0, "hold": 3}  # not before the end
    whole = run_of(tmp_path / "whole", tiny.spec(ARMS, steps=2 * STEPS, **settings))
    short = run_of(tmp_path / "short", tiny.spec(ARMS, **settings))
    before = short.trajectory()
    resume(short.path, steps=2 * STEPS, report=False)
    assert_one_run_went_on(short, whole, STEPS, 2 * STEPS)
    kept = short.trajectory().filter(pl.col("step") <= STEPS)
    assert kept.sort("replica", "step").equals(before.sort("replica", "step"))
    assert weights(short) == weights(whole)
    assert {finding.n for finding in load(short.path).findings if finding.kind == "onset"} == {2}


@pytest.mark.parametrize("pieces", [(0,), (0, 0), (1,), (13,)], ids=str)
def test_stopping_afterwards_changes_nothing(tmp_path, pieces):
    spec, longer = (tiny.spec(ARMS, steps=n, evaluation=EVALUATION) for n in (STEPS, 2 * STEPS))
    once, often = (run_of(tmp_path / name, spec) for name in ("once", "often"))
    for folder in (once, often):
        lengthen(folder, spec, 2 * STEPS)
    train(longer, once)
    for piece in pieces:
        count = itertools.count()
        with pytest.raises(Interrupted):
            train(longer, often, stop=lambda: next(count) == piece)  # noqa: B023
    train(longer, often)
    assert not once.trajectory().select("replica", "step").is_duplicated().any()
    assert often.trajectory().sort("replica", "step").equals(once.trajectory().sort("replica", "step"))
    assert weights(often) == weights(once)


def test_a_run_that_was_stopped_may_get_more_steps_as_well(tmp_path):
    spec = tiny.spec(ARMS)
    folder = RunFolder.create(tmp_path / "run", spec.model_dump(mode="json"))
    count = itertools.count()
    with pytest.raises(Interrupted):
        train(spec, folder, stop=lambda: next(count) == 17)
    resume(folder.path, steps=2 * STEPS, report=False)
    assert_one_run_went_on(folder, run_of(tmp_path / "whole", tiny.spec(ARMS, steps=2 * STEPS)), 17, 2 * STEPS)


class InTwos(Inline):
    """Two shards, trained here."""

    def __init__(self):
        super().__init__(Order())
        self.workers = 2


def test_every_shard_gets_them(tmp_path):
    spec, longer = (tiny.spec(ARMS, seeds=3, precision="float64", steps=n) for n in (STEPS, 2 * STEPS))
    folder = RunFolder.create(tmp_path / "run", spec.model_dump(mode="json"))
    launch(spec, folder, InTwos())
    lengthen(folder, spec, 2 * STEPS)
    assert not folder.finished
    assert {json.loads(path.read_text())["steps"] for path in folder.path.glob("shards/*/spec.json")} == {STEPS}
    launch(longer, folder, InTwos())
    assert {json.loads(path.read_text())["steps"] for path in folder.path.glob("shards/*/spec.json")} == {2 * STEPS}
    rows, whole = folder.trajectory(), run_of(tmp_path / "whole", longer).trajectory()
    assert not rows.select("replica", "step").is_duplicated().any()
    last = [frame.filter(pl.col("step") == 2 * STEPS).sort("replica")["train/loss"] for frame in (rows, whole)]
    assert last[0].to_list() == pytest.approx(last[1].to_list(), rel=1e-9)
    assert load(folder.path).trained("held", 2).step == 2 * STEPS


def test_the_command_that_reproduces_it_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_json(tmp_path / "tiny.json", tiny.study())
    app(["run", "tiny.json", "--out", "a run", "--no-report"], result_action="return_value")
    first = load("a run").folder.status["command"]
    for _ in range(2):  # the second time there is nothing to do
        app(["resume", "a run", "--steps", "80", "--no-report"], result_action="return_value")
    assert load("a run").folder.status["command"] == f"{first} && grokscape resume {shlex.quote('a run')} --steps 80"
    assert "80" in capsys.readouterr().out
    assert load("a run").spec.steps == 80


def test_what_cannot_become_longer_is_refused_and_left_as_it_was(tmp_path):
    spec = tiny.spec(("baseline", "paper", "cosine"))
    folder = run_of(tmp_path / "run", spec)
    with pytest.raises(ValueError, match="arm 'paper' follows a cosine to the last of 40 steps, so a longer run"):
        resume(folder.path, steps=80)
    with pytest.raises(ValueError, match="expected more steps than the run has, 40, got 39"):
        resume(folder.path, steps=39)
    assert folder.finished
    assert folder.spec["steps"] == STEPS


@pytest.mark.parametrize(("changes", "refused"), [({}, True), ({"every": 10}, False), ({"steps": [20, 60]}, False)])
def test_a_run_that_lists_where_it_is_measured_is_not_left_unmeasured(tmp_path, changes, refused):
    spec = tiny.spec(evaluation={"measures": ["cdnv"], "steps": [5, 20], **changes})
    folder = RunFolder.create(tmp_path / "run", spec.model_dump(mode="json"))
    if refused:
        with pytest.raises(ValueError, match=r"evaluation.steps lists no step after 40, so a longer run would be meas"):
            lengthen(folder, spec, 80)
    else:
        lengthen(folder, spec, 80)
    assert folder.spec["steps"] == (STEPS if refused else 2 * STEPS)


def test_steps_edited_by_hand_do_no_harm(tmp_path):
    for name, arms, steps, reason in (("a", ("baseline", "cosine"), 80, "a cosine ends with the run"),
                                      ("b", ARMS, 30, "40 steps are made")):
        folder = run_of(tmp_path / name, tiny.spec(arms))
        folder.write_status(**{**folder.status, "state": "interrupted"})
        edited = tiny.spec(arms, steps=steps)
        write_json(folder.path / "spec.json", edited.model_dump(mode="json"))
        with pytest.raises(RunFolderError, match=rf'was to have 40 steps, now {steps}, but {reason}; put "steps"'):
            train(edited, folder)
