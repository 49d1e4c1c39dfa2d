"""The real command, stopped and killed: its folder stays readable, and going on gives the run that was left alone."""

import json
import random
import signal
import subprocess
import sys
import time

import polars as pl
import pytest

import tiny
from grokscape.store import RunFolder, read_json

MOMENTS = 6
ARMS = ("baseline", "held", "since memorisation", "paper")
STUDY = {"arms": [tiny.arm(name) for name in ARMS], "steps": 250, "batch_size": 8}
OFTEN = ("--checkpoint-every", "0.05", "--no-report")


def bits(folder):
    frame = RunFolder.open(folder).trajectory()
    return {name: frame[name].to_numpy().tobytes() for name in frame.columns if name != "arm"}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A folder to keep the undisturbed run's bits in, made by the first test that needs them."""
    return {}


@pytest.fixture
def truth(undisturbed, process, study_file, tmp_path):
    """Bits of the trajectory of the same command, left alone, and how long it took."""
    if not undisturbed:
        began = time.monotonic()
        child = process("run", study_file(**STUDY), "--out", tmp_path / "undisturbed", *OFTEN)
        assert child.wait(600) == 0, child.stderr.read()
        undisturbed.update(bits=bits(tmp_path / "undisturbed"), seconds=time.monotonic() - began)
    return undisturbed


def wait_until(condition, child, seconds=600):
    end = time.monotonic() + seconds
    while not condition():
        assert child.poll() is None, child.stderr.read()
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def assert_readable(path):
    """Nothing in the folder is half a file."""
    for part in (path / "trajectory").glob("*.parquet"):
        assert pl.read_parquet(part).height > 0
    for file in (*path.glob("*.json"), *(path / "checkpoints").glob("*.json")):
        assert json.loads(file.read_text())
    if (path / "spec.json").exists():
        folder = RunFolder.open(path)
        frame = folder.trajectory()
        assert frame.is_empty() or frame.select("replica", "step").is_unique().all()
        assert folder.status.get("state", "running") in ("running", "finished")
        assert frame.is_empty() or folder.columns()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_stopped_run_is_saved_says_how_to_go_on_and_goes_on(truth, process, study_file, tmp_path, number):
    out = tmp_path / "run"
    child = process("run", study_file(**STUDY), "--out", out, *OFTEN)
    wait_until(lambda: list(out.glob("checkpoints/*.json")), child)
    child.send_signal(number)
    _, errors = child.communicate(timeout=600)
    assert child.returncode == 130
    assert f"everything so far is in {out}" in errors
    assert f"Go on with: grokscape resume {out}" in errors
    assert "Traceback" not in errors
    folder = RunFolder.open(out)
    assert folder.status["state"] == "interrupted"
    assert 0 < folder.status["step"] < STUDY["steps"]
    assert folder.trajectory()["step"].max() < folder.status["step"]
    assert set(folder.trajectory()["arm"].unique()) == set(ARMS)
    again = process("resume", out, *OFTEN)
    output, errors = again.communicate(timeout=600)
    assert again.returncode == 0, errors
    assert f"run folder: {out}" in output
    assert bits(out) == truth["bits"]


def test_killed_again_and_again_a_run_ends_as_if_nothing_had_happened(truth, process, study_file, tmp_path):
    out, rng, kills = tmp_path / "run", random.Random(), []
    seen = None
    for moment in range(MOMENTS):
        first = not (out / "spec.json").exists()
        child = process(*(("run", study_file(**STUDY), "--out") if first else ("resume",)), out, *OFTEN)
        wait_until(lambda seen=seen: (out / "status.json").exists() and stamp(out) != seen, child)
        time.sleep(delay := rng.uniform(0, 0.4))
        if child.poll() is not None:
            break
        child.kill()
        child.wait()
        kills.append((moment, delay))
        assert_readable(out)
        seen = stamp(out)
    assert len(kills) >= 2
    last = process("resume", out, *OFTEN)
    assert last.wait(600) == 0, last.stderr.read()
    assert_readable(out)
    assert bits(out) == truth["bits"], kills
    assert not [path.name for path in out.rglob(".*") if path.name != ".lock"]


def stamp(out):
    return (out / "status.json").stat().st_mtime_ns


@pytest.mark.slow
@pytest.mark.parametrize("moment", range(30))
def test_killed_at_any_moment_of_its_life(truth, process, study_file, tmp_path, moment):
    out = tmp_path / "run"
    child = process("run", study_file(**STUDY), "--out", out, *OFTEN)
    time.sleep(random.Random().uniform(0.2, 1.05) * truth["seconds"])
    child.kill()
    child.wait()
    assert_readable(out)
    begun = (out / "spec.json").exists()
    again = process(*(("resume", out) if begun else ("run", study_file(**STUDY), "--out", out)), *OFTEN)
    assert again.wait(600) == 0, again.stderr.read()
    assert read_json(out / "status.json")["state"] == "finished"
    assert bits(out) == truth["bits"]


def test_stopping_a_run_in_shards_stops_them_all(process, study_file, tmp_path):
    out = tmp_path / "run"
    study = {**STUDY, "steps": 4000}
    child = process("run", study_file(**study), "--out", out, "--launcher", "processes", "--workers", "2", *OFTEN)
    wait_until(lambda: len(list(out.glob("shards/*/progress.json"))) == 2, child)
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=600)
    assert child.returncode == 130, errors
    assert f"Go on with: grokscape resume {out}" in errors
    status = RunFolder.open(out).status
    assert status["state"] == "interrupted"
    assert set(status["shards"].values()) == {"interrupted"}
    assert set(RunFolder.open(out).trajectory()["seed"].unique()) == {0, 1}


def test_who_calls_it_from_python_can_still_be_stopped():
    text = "import signal, sys; from grokscape.cli import main; sys.argv = ['grokscape', 'presets']\n" \
           "signal.signal(signal.SIGINT, signal.default_int_handler)  # a script's background ignores it\n" \
           "try: main()\nexcept SystemExit: pass\nsignal.raise_signal(signal.SIGINT)"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True)
    assert "KeyboardInterrupt" in done.stderr
