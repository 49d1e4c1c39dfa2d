"""Trackers get the medians of the columns, one run for each arm, and never cost the run."""

import json
import math
import statistics
import struct
import time

import pytest

import grokscape as gs
import tiny
from grokscape import trackers
from grokscape.store import RunFolder
from grokscape.studies import train
from grokscape.trackers import Trackers
from grokscape.training import Interrupted, Progress

COLUMNS = ("train/accuracy", "test/accuracy", "train/relative_flatness", "params/weight_norm")


def trained(path, names, spec=None, live=True, **options):
    spec = spec or tiny.spec(seeds=3)
    folder = RunFolder.create(path, spec.model_dump(mode="json")) if not path.exists() else RunFolder.open(path)
    with Trackers(names, spec.name, folder) as tracking:
        train(spec, folder, progress=tracking if live else None, **options)
        if not live:
            tracking.replay()
    return folder


def expected(folder, arm, column):
    """Step → median over seeds, worked out row by row, at steps where every replica was measured."""
    rows = [row for row in folder.trajectory().iter_rows(named=True) if row["arm"] == arm]
    by_step = {}
    for row in rows:
        by_step.setdefault(row["step"], []).append(row[column])
    return {step: statistics.median(values) for step, values in by_step.items() if len(values) == 3}


def assert_curves_match(folder, curve_of):
    for arm in ("baseline", "held"):
        for column in COLUMNS:
            curve, truth = curve_of(arm, column), expected(folder, arm, column)
            grid = tiny.spec().evaluation.grid(40)
            assert set(grid) <= set(curve), (arm, column)
            for step in grid:
                assert math.isclose(curve[step], truth[step], rel_tol=1e-6, abs_tol=1e-7), (arm, column, step)


@pytest.mark.parametrize("live", [True, False], ids=["while training", "afterwards"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_events_can_be_read_back(tmp_path, live):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    folder = trained(tmp_path / "run", ["tensorboard"], live=live)

    def curve(arm, column):
        reader = events.EventAccumulator(str(folder.path / "tensorboard" / arm), size_guidance={"scalars": 0})
        return {event.step: event.value for event in reader.Reload().Scalars(column)}

    assert_curves_match(folder, curve)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_run_that_was_stopped_goes_on_in_the_same_tensorboard_curve(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    count = iter(range(100))
    with pytest.raises(Interrupted):
        trained(tmp_path / "run", ["tensorboard"], stop=lambda: next(count) == 15)
    folder = trained(tmp_path / "run", ["tensorboard"])
    reader = events.EventAccumulator(str(folder.path / "tensorboard" / "held"), size_guidance={"scalars": 0})
    steps = [event.step for event in reader.Reload().Scalars("train/accuracy")]
    assert steps == tiny.spec().evaluation.grid(40)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
def test_mlflow_metrics_can_be_read_back(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    folder = trained(tmp_path / "run", ["mlflow"])
    client = mlflow.MlflowClient(tracking_uri=(folder.path / "mlruns").resolve().as_uri())
    found = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    runs = {run.data.tags["grokscape.arm"]: run for run in found}
    assert set(runs) == {"baseline", "held"}
    assert {run.info.status for run in found} == {"FINISHED"}

    def curve(arm, column):
        return {point.step: point.value for point in client.get_metric_history(runs[arm].info.run_id, column)}

    assert_curves_match(folder, curve)


class Broken:
    """Breaks down at its third call."""

    calls = 0

    def __init__(self, study, folder, arm, first_step):
        pass

    def log(self, step, values):
        Broken.calls += 1
        if Broken.calls == 3:
            raise RuntimeError("no connection")

    def close(self):
        raise AssertionError("a broken tracker is left alone")


def test_a_tracker_that_breaks_down_costs_no_run(tmp_path, monkeypatch):
    monkeypatch.setitem(trackers.TRACKERS, "tensorboard", Broken)
    with pytest.warns(UserWarning, match="tensorboard failed and is left out from here on: no connection"):
        folder = trained(tmp_path / "run", ["tensorboard"])
    assert Broken.calls == 3
    assert folder.status["state"] == "finished"


def test_unknown_trackers_are_refused_with_those_there_are(tmp_path):
    with pytest.raises(ValueError, match="expected trackers among tensorboard, wandb, mlflow, got 'tensorbord'"):
        Trackers.check(["tensorbord"])


def test_a_tracker_that_is_not_installed_is_refused_with_how_to_install_it(monkeypatch):
    monkeypatch.setitem(trackers.MODULES, "wandb", "no_such_module")
    with pytest.raises(ValueError, match=r"wandb is not installed .*pip install 'grokscape\[trackers\]'"):
        Trackers.check(["wandb"])


def test_medians_leave_out_what_is_not_finite():
    values = {"a": [1.0, math.nan, 3.0, 5.0], "b": [math.nan, math.inf, math.nan, 2.0]}
    medians = Progress(1, 2, 0.0, 0.0, ("x", "x", "x", "y"), values).medians()
    assert medians["x"]["a"] == 2.0
    assert math.isnan(medians["x"]["b"])
    assert medians["y"] == {"a": 5.0, "b": 2.0}


def wandb_records(path):
    """Records of an offline run: a header of 7 bytes, then LevelDB's log format in blocks of 32 KiB."""
    data, place, record = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        if place + 7 + length > len(data):  # still being written
            return
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or last piece
            yield record
            record = b""


def wandb_curves(folder):
    """Arm → step → values of the offline runs in a folder."""
    from wandb.proto.wandb_internal_pb2 import Record

    curves = {}
    for file in folder.path.glob("wandb/offline-run-*/*.wandb"):
        records = [Record.FromString(record) for record in wandb_records(file)]
        name = next((record.run.display_name for record in records if record.HasField("run")), "not written yet")
        histories = [record.history.item for record in records if record.HasField("history")]
        rows = [{i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items} for items in histories]
        curves[name] = {int(row["_step"]): row for row in rows}
    return curves


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_wandb_runs_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = trained(tmp_path / "run", ["wandb"])
    end = time.monotonic() + 60  # its service process writes a while longer
    while not all(40 in wandb_curves(folder).get(arm, {}) for arm in ("baseline", "held")):
        assert time.monotonic() < end, wandb_curves(folder).keys()
        time.sleep(0.2)
    curves = wandb_curves(folder)
    assert set(curves) == {"baseline", "held"}
    assert_curves_match(folder, lambda arm, column: {step: row[column] for step, row in curves[arm].items()})


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_run_in_shards_is_told_to_its_trackers_and_resumes_with_as_many_workers(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    study = gs.run(
        tiny.spec(seeds=3), tmp_path / "run", launcher="processes", workers=3, trackers=["tensorboard"], report=False
    )
    reader = events.EventAccumulator(str(study.folder.path / "tensorboard" / "held"), size_guidance={"scalars": 0})
    told = {event.step for event in reader.Reload().Scalars("test/accuracy")}
    assert told >= set(tiny.spec().evaluation.grid(40))
    study.folder.write_status(**{**study.folder.status, "state": "interrupted"})
    assert gs.resume(study.folder.path, report=False).folder.status["workers"] == 3
