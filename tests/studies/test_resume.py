"""Stopping, saving and going on give, bit for bit, the run that was never stopped."""

import itertools
import json
import os
import shutil
import subprocess
import sys
import threading

import pytest

import tiny
from grokscape.store import RunFolder, RunFolderError, write_json
from grokscape.studies import train
from grokscape.training import Interrupted
from grokscape.workflow import resume

STEPS = 40
OPTIMIZERS = {
    "adamw": tiny.ADAMW,
    "sgd with momentum": tiny.SGD,
    "sgd without momentum": {**tiny.SGD, "momentum": 0.0},
    "nesterov": {**tiny.SGD, "nesterov": True},
}


def bits(frame):
    """Every column's bytes, so that NaN equals NaN and 0.0 differs from −0.0."""
    return {name: frame[name].to_numpy().tobytes() for name in frame.columns if name != "arm"}


def newest_weights(folder):
    return sorted((folder.path / "checkpoints").glob("*.safetensors"))[-1].read_bytes()


def stop_at(*steps):
    """Asked once before every step: yes at these counts of a sitting."""
    count = itertools.count()
    return lambda: next(count) in steps


def interrupted(path, spec, step):
    """A run that was stopped at a step."""
    folder = RunFolder.create(path, spec.model_dump(mode="json"))
    with pytest.raises(Interrupted):
        train(spec, folder, stop=stop_at(step))
    return folder


def run_whole(path, spec, **options):
    folder = RunFolder.create(path, spec.model_dump(mode="json"))
    train(spec, folder, **options)
    return folder


def run_in_pieces(path, spec, *pieces, **options):
    """Sittings of the given numbers of steps, then one to the end."""
    folder = RunFolder.create(path, spec.model_dump(mode="json"))
    for piece in pieces:
        with pytest.raises(Interrupted, match="Go on with: grokscape resume"):
            train(spec, folder, stop=stop_at(piece), **options)
        assert folder.status["state"] == "interrupted"
    train(spec, folder, **options)
    return folder


@pytest.mark.parametrize("batch_size", [None, 8], ids=["full batch", "minibatch"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=list(OPTIMIZERS))
def test_stopping_half_way_changes_no_bit(tmp_path, optimizer, batch_size):
    spec = tiny.spec((*tiny.ARMS, *tiny.OPTIONS), optimizer=optimizer, batch_size=batch_size)
    whole, pieces = run_whole(tmp_path / "whole", spec), run_in_pieces(tmp_path / "pieces", spec, STEPS // 2)
    assert bits(whole.trajectory()) == bits(pieces.trajectory())
    assert newest_weights(whole) == newest_weights(pieces)
    assert pieces.status["state"] == "finished"
    assert pieces.status["step"] == STEPS


@pytest.mark.parametrize("pieces", [(0,), (1, 1, 1), (STEPS,), (9, 1, 11)], ids=str)
def test_any_moment_will_do(tmp_path, pieces):
    spec = tiny.spec(tuple(tiny.ARMS))
    whole, stopped = run_whole(tmp_path / "whole", spec), run_in_pieces(tmp_path / "pieces", spec, *pieces)
    assert bits(whole.trajectory()) == bits(stopped.trajectory())
    steps = whole.trajectory()["step"].unique()
    assert set(steps) > set(spec.evaluation.grid(STEPS)), "extra measurements were taken"


@pytest.mark.parametrize("precision", ["float64", "bf16"])
def test_any_precision_will_do(tmp_path, precision):
    spec = tiny.spec(tuple(tiny.ARMS), precision=precision)
    whole, stopped = run_whole(tmp_path / "whole", spec), run_in_pieces(tmp_path / "pieces", spec, 17)
    assert bits(whole.trajectory()) == bits(stopped.trajectory())


def test_a_transformer_goes_on_as_it_would_have(tmp_path):
    model = {"kind": "transformer", "layers": 2, "heads": 2, "width": 16}
    spec = tiny.spec(("baseline", "held"), model=model, batch_size=8, steps=30)
    whole, stopped = run_whole(tmp_path / "whole", spec), run_in_pieces(tmp_path / "pieces", spec, 13)
    assert bits(whole.trajectory()) == bits(stopped.trajectory())


def test_early_stopping_and_divergence_survive_a_stop(tmp_path):
    onset = {"train_threshold": 0.5, "test_threshold": 0.1, "hold": 2}
    testbed = {"kind": "modular", "operation": "x+y", "p": 11, "train_fraction": 0.8}
    spec = tiny.spec(("baseline", "promoted"), early_stop=True, steps=300, onset=onset, testbed=testbed)
    wild = {"name": "wild", "optimizer": {"lr": 1e38}, "role": "control", "interventions": tiny.ARMS["spectral"]}
    spec = spec.model_validate({**spec.model_dump(), "arms": [*spec.model_dump()["arms"], wild]})
    whole, stopped = run_whole(tmp_path / "whole", spec), run_in_pieces(tmp_path / "pieces", spec, 30, 5)
    assert bits(whole.trajectory()) == bits(stopped.trajectory())
    assert whole.status["replicas"] == stopped.status["replicas"]
    assert [row["diverged_at"] is not None for row in stopped.status["replicas"]] == [False] * 4 + [True] * 2
    assert stopped.status["step"] == whole.status["step"] < 300


def test_a_run_of_which_nothing_is_left_keeps_what_it_has_measured(tmp_path, monkeypatch):
    monkeypatch.setattr("grokscape.training.run._PAUSE_PER_SAVING", 0.0)  # a part of the trajectory at each step
    spec = tiny.spec(optimizer={"kind": "sgd", "lr": 1e25})
    folder = run_whole(tmp_path / "run", spec, checkpoint_seconds=0)
    assert None not in {row["diverged_at"] for row in folder.status["replicas"]}
    assert folder.trajectory()["replica"].unique().to_list() == [0, 1, 2, 3]


def test_times_add_up_over_sittings(tmp_path):
    folder = run_in_pieces(tmp_path / "run", tiny.spec(), 20)
    about = json.loads(sorted((folder.path / "checkpoints").glob("*.json"))[0].read_text())
    status = folder.status
    assert 0 < about["seconds"] < status["seconds"] + 1e-3
    assert 0 < about["seconds_measuring"] < status["seconds_measuring"] < status["seconds"]


def half_written(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped(path):
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(bytes(data))


DAMAGES = {
    "json half-written": ("*.json", half_written),
    "json not text": ("*.json", lambda path: path.write_bytes(b"\xff\xfe\x00")),
    "json without its entries": ("*.json", lambda path: path.write_text("{}")),
    "tensors half-written": ("*.safetensors", half_written),
    "one bit of the tensors flipped": ("*.safetensors", flipped),
    "tensors missing": ("*.safetensors", lambda path: path.unlink()),
}


@pytest.mark.parametrize(("pattern", "damage"), DAMAGES.values(), ids=list(DAMAGES))
def test_a_damaged_newest_checkpoint_costs_only_the_work_since_the_one_before(tmp_path, pattern, damage):
    spec = tiny.spec(batch_size=8)
    whole = run_whole(tmp_path / "whole", spec)
    folder = RunFolder.create(tmp_path / "run", spec.model_dump(mode="json"))
    for piece in (15, 10):
        with pytest.raises(Interrupted):
            train(spec, folder, stop=stop_at(piece))
    assert len(list((folder.path / "checkpoints").glob("*.json"))) == 2
    damage(sorted((folder.path / "checkpoints").glob(pattern))[-1])
    with pytest.warns(UserWarning, match=r"going on from an earlier moment of the run"):
        train(spec, folder, progress=(seen := []).append)
    assert seen[0].step >= 15
    assert bits(whole.trajectory()) == bits(folder.trajectory())


def test_without_any_whole_checkpoint_a_run_begins_again(tmp_path):
    spec = tiny.spec()
    whole = run_whole(tmp_path / "whole", spec)
    folder = interrupted(tmp_path / "run", spec, 15)
    flipped(next((folder.path / "checkpoints").glob("*.safetensors")))
    with pytest.warns(UserWarning, match="SHA-256"):
        train(spec, folder)
    assert bits(whole.trajectory()) == bits(folder.trajectory())


def test_parts_missing_from_the_trajectory_are_noticed(tmp_path):
    spec = tiny.spec()
    folder = interrupted(tmp_path / "run", spec, 15)
    folder.parts()[0].unlink()
    with pytest.warns(UserWarning, match="expects 1 parts of the trajectory, got 0"):
        train(spec, folder)
    assert folder.trajectory()["step"].min() == 0


def test_rows_without_any_checkpoint_are_made_anew_and_that_is_said(tmp_path):
    spec = tiny.spec()
    whole = run_whole(tmp_path / "whole", spec)
    folder = interrupted(tmp_path / "run", spec, 15)
    shutil.rmtree(folder.path / "checkpoints")
    with pytest.warns(UserWarning, match="holds no checkpoint; its rows are made anew from step 0"):
        train(spec, folder)
    assert bits(whole.trajectory()) == bits(folder.trajectory())


def test_a_finished_run_that_lost_a_part_makes_it_anew(tmp_path):
    spec = tiny.spec()
    folder = run_in_pieces(tmp_path / "run", spec, 15)
    before = bits(folder.trajectory())
    assert folder.finished
    for part in folder.parts():
        part.unlink()
    assert not folder.finished
    with pytest.warns(UserWarning, match="parts of the trajectory, got 0"):
        resume(folder.path, report=False)
    assert folder.finished
    assert bits(folder.trajectory()) == before


def test_a_study_that_was_changed_after_its_run_began_is_refused(tmp_path):
    spec = tiny.spec()
    folder = interrupted(tmp_path / "run", spec, 15)
    rows = folder.trajectory()
    changed = tiny.spec(steps=2 * STEPS, optimizer={**tiny.ADAMW, "lr": 0.02})
    write_json(folder.path / "spec.json", changed.model_dump(mode="json"))
    with pytest.raises(RunFolderError, match=r"spec\.json was changed after the run began; restore it"):
        train(changed, folder)
    assert folder.trajectory().equals(rows)
    write_json(folder.path / "spec.json", spec.model_dump(mode="json"))
    train(spec, folder)
    assert folder.finished


def test_a_process_killed_between_its_last_checkpoint_and_its_last_status_repeats_nothing(tmp_path):
    spec = tiny.spec()
    folder = run_whole(tmp_path / "run", spec)
    before, status = bits(folder.trajectory()), folder.status
    folder.write_status(**{**status, "state": "running"})
    train(spec, folder)
    assert folder.status["state"] == "finished"
    assert bits(folder.trajectory()) == before


def test_files_that_a_killed_process_had_begun_are_ignored_and_then_cleared(tmp_path):
    spec = tiny.spec()
    (tmp_path / "run").mkdir()
    stale = [tmp_path / "run/.spec.json.abc12_x"]
    stale[0].write_text("{")
    folder = interrupted(tmp_path / "run", spec, 15)
    stale += [
        folder.path / ".status.json.k2j3h4",
        folder.path / "trajectory/.part-00001.parquet.qwe",
        folder.path / "checkpoints/.step-000000015.json.asd",
        folder.path / "checkpoints/.step-000000030.safetensors.asd",
    ]
    orphan = folder.path / "checkpoints/step-000000010.safetensors"
    for path in (*stale, orphan):
        path.write_bytes(b"half")
    assert folder.trajectory()["step"].max() < 15
    train(spec, folder)
    assert not any(path.exists() for path in (*stale, orphan))


def test_a_changed_specification_is_refused_with_what_to_do(tmp_path):
    spec = tiny.spec()
    folder = interrupted(tmp_path / "run", spec, 15)
    with pytest.raises(RunFolderError, match=r"does not belong to this study: .*flat.*a folder of its own"):
        train(tiny.spec(seeds=3), folder)


HOLDER = """
import sys
from pathlib import Path
from grokscape.store import RunFolder
with RunFolder.open(sys.argv[1]).claim():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_two_processes_do_not_train_into_one_folder(tmp_path):
    spec = tiny.spec()
    folder = RunFolder.create(tmp_path / "run", spec.model_dump(mode="json"))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", HOLDER, folder.path], env=os.environ, text=True, **pipes) as holder:
        assert holder.stdout.readline() == "held\n"
        assert folder.in_use
        with pytest.raises(RunFolderError, match=r"another process is training into .*wait for it, or stop it"):
            train(spec, folder)
        holder.stdin.close()
    assert not folder.in_use
    train(spec, folder)
    assert folder.status["state"] == "finished"


TRY = """
import sys
from grokscape.store import RunFolder, folder
folder._SAVING_SECONDS = 0
with RunFolder(folder.Path(sys.argv[1])).claim():
    pass
"""


def test_who_asks_from_within_the_process_that_trains_is_told_and_lets_no_other_in(tmp_path):
    def tried():
        done = subprocess.run([sys.executable, "-c", TRY, folder.path], env=os.environ, capture_output=True, text=True)
        return done.stderr

    folder, seen = RunFolder.create(tmp_path / "run", tiny.study(steps=2)), []
    train(tiny.spec(steps=2), folder, progress=lambda measured: seen.append(RunFolder.open(folder.path).state))
    assert seen == ["running"] * 3
    with folder.claim():
        assert RunFolder(folder.path).in_use
        with pytest.raises(RunFolderError, match=r"this process is training into .*wait for it"), folder.claim():
            pass
        assert "another process is training into" in tried()
    assert not folder.in_use
    assert tried() == ""


FIRST = """
import sys
from grokscape.store import folder

def wait(*told, write=folder.write_json):
    print("about to write", flush=True)
    sys.stdin.read()
    write(*told)

folder.write_json = wait
folder.RunFolder.create(sys.argv[1], {"name": "first"})
"""


def test_of_two_that_make_a_run_in_one_place_at_once_the_second_is_refused(tmp_path):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", FIRST, tmp_path], env=os.environ, text=True, **pipes) as first:
        assert first.stdout.readline() == "about to write\n"
        threading.Timer(0.3, first.stdin.close).start()
        with pytest.raises(RunFolderError, match="exists and is not empty"):
            RunFolder.create(tmp_path, {"name": "second"})
    assert RunFolder(tmp_path).spec == {"name": "first"}


def test_damaged_parts_are_named(tmp_path):
    folder = run_whole(tmp_path / "run", tiny.spec(steps=5))
    half_written(folder.parts()[0])
    with pytest.raises(RunFolderError, match=r"part-00000.parquet is damaged"):
        folder.trajectory()


def test_a_name_with_a_star_reads_no_other_folder(tmp_path):
    first, second = (run_whole(tmp_path / name, tiny.spec(steps=5)) for name in ("x+y", "x*y"))
    assert second.trajectory().height == first.trajectory().height


def test_settings_that_arms_cannot_differ_in_are_refused(tmp_path):
    changed = tiny.study()
    changed["arms"][1]["optimizer"] = {"betas": [0.9, 0.99]}
    with pytest.raises(ValueError, match=r"arms of one run may differ in lr, .*nothing else of it; got .*0\.99.*one"):
        run_whole(tmp_path / "run", tiny.spec().model_validate(changed))
