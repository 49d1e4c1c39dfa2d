"""Shards of seeds, trained anywhere, give the run that one process would have made; workers may die on the way."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import tiny
from grokscape import studies
from grokscape.store import KEYS, RunFolder, RunFolderError
from grokscape.studies import train
from grokscape.studies.launchers import ELSEWHERE, Inline, Order, Processes, launch
from grokscape.studies.shards import STOP, shards_of, train_shard
from grokscape.training import Interrupted
from grokscape.workflow import checked_device
from sharded import SPEC, Scripted, new_folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run in one process."""
    folder = new_folder(tmp_path_factory.mktemp("whole") / "run")
    train(SPEC, folder)
    return folder


def assert_same_run(folder, whole):
    ours, theirs = folder.trajectory(), whole.trajectory()
    assert ours.columns == theirs.columns
    assert ours.select(KEYS).equals(theirs.select(KEYS))
    for name in set(ours.columns) - set(KEYS):
        error = (ours[name] - theirs[name]).abs().max()
        assert error is None or error < 1e-9 or error != error, name
        assert ours[name].is_nan().equals(theirs[name].is_nan()), name
    assert folder.columns() == whole.columns()
    assert folder.status["replicas"] == whole.status["replicas"]
    assert folder.status["state"] == "finished"
    assert folder.status["step"] == whole.status["step"]


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_shards_together_are_the_run(tmp_path, whole, workers):
    folder = new_folder(tmp_path / "run")
    launcher = Scripted()
    launcher.workers = workers
    seen = []
    launch(SPEC, folder, launcher, progress=seen.append)
    assert_same_run(folder, whole)
    assert len(launcher.calls) == workers
    assert folder.status["launcher"] == "scripted"
    assert folder.status["workers"] == workers
    assert seen[-1].step == 20
    assert len(seen[-1].arms) == 15
    assert not (folder.path / "shards" / STOP).exists()


def test_processes_give_the_same_run(tmp_path, whole):
    folder = new_folder(tmp_path / "run")
    launch(SPEC, folder, "processes", workers=2)
    assert_same_run(folder, whole)
    assert {(shard.folder.status["threads"]) for shard in shards_of(folder, SPEC, 2)} == {1}
    assert [(shard.folder.path / "log.txt").read_text() for shard in shards_of(folder, SPEC, 2)] == ["", ""]


def killed_once(shard, call):
    """A worker that trains up to step 7, saves, and is lost."""
    if call == 1 and shard.name == "seeds-00002-00005":
        count = iter(range(100))
        train_shard(str(shard), stop=lambda: next(count) == 7)
        raise RuntimeError("worker lost")


def test_a_worker_that_fails_says_why(tmp_path):
    spec = tiny.spec(seeds=1, steps=4)
    folder = new_folder(tmp_path / "run", spec)
    (shard,) = shards_of(folder, spec, 1)
    train_shard(str(shard.folder.path), stop=lambda: True)
    changed = {**spec.model_dump(mode="json"), "early_stop": True}
    (shard.folder.path / "spec.json").write_text(json.dumps(changed))
    with pytest.raises(RuntimeError, match=r"exit code 1; last words: .*RunFolderError: .*changed after the run began"):
        Processes(Order(workers=1))(shard.folder.path)


def test_last_words_are_those_of_the_worker_that_failed(tmp_path, monkeypatch):
    shard, killed = tmp_path / "seeds-00000-00001", tmp_path / "killed"
    shard.mkdir()
    (shard / "log.txt").write_text("words of an earlier worker\n")
    killed.write_text("#!/bin/sh\nkill -9 $$\n")
    killed.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(killed))
    with pytest.raises(RuntimeError, match=r"^worker ended with signal 9; last words: none$"):
        Processes(Order(workers=1))(shard)


def test_a_lost_worker_costs_nothing_but_time(tmp_path, whole):
    folder = new_folder(tmp_path / "run")
    launcher = Scripted(killed_once)
    launch(SPEC, folder, launcher)
    assert sorted(launcher.calls) == ["seeds-00000-00002", "seeds-00002-00005", "seeds-00002-00005"]
    assert_same_run(folder, whole)


def always_lost(shard, call):
    if shard.name == "seeds-00000-00002":
        raise RuntimeError("no such machine")


def test_a_shard_that_always_fails_is_named_and_the_others_are_kept(tmp_path, whole):
    folder = new_folder(tmp_path / "run")
    launcher = Scripted(always_lost)
    with pytest.raises(RunFolderError, match=r"1 of 2 shards failed.*00000-00002 failed 3 times.*no such machine"):
        launch(SPEC, folder, launcher)
    assert launcher.calls.count("seeds-00000-00002") == 3
    assert folder.status["state"] == "failed"
    assert folder.status["shards"] == {"seeds-00000-00002": "waiting", "seeds-00002-00005": "finished"}
    assert set(folder.trajectory()["seed"].unique()) == {2, 3, 4}
    again = Scripted()
    launch(SPEC, folder, again)
    assert again.calls == ["seeds-00000-00002"]
    assert_same_run(folder, whole)


def test_a_failure_while_everything_is_to_stop_is_none(tmp_path):
    def taken_back(shard, call):
        if call == 3:
            (shard.parent / STOP).touch()
        raise RuntimeError("job taken out of the queue")

    launcher = Scripted(taken_back)
    launcher.workers = 1
    with pytest.raises(Interrupted):
        launch(SPEC, new_folder(tmp_path / "run"), launcher)


def unusable(shard, call):
    raise ValueError("no such queue")


def test_settings_that_cannot_work_are_not_tried_again(tmp_path):
    launcher = Scripted(unusable)
    with pytest.raises(ValueError, match="no such queue"):
        launch(SPEC, new_folder(tmp_path / "run"), launcher)
    assert len(launcher.calls) == 2


def test_stopping_stops_all_shards_and_going_on_finishes_them(tmp_path, whole, monkeypatch):
    both = threading.Barrier(2)

    def interrupt(shard, call):
        count = iter(range(100))
        train_shard(str(shard), stop=lambda: next(count) == 9)
        both.wait(60)
        if shard.name == "seeds-00000-00002":
            os.kill(os.getpid(), signal.SIGINT)
        while not (shard.parent / STOP).exists():
            time.sleep(0.01)

    folder = new_folder(tmp_path / "run")
    with pytest.raises(Interrupted, match="Go on with: grokscape resume"):
        launch(SPEC, folder, Scripted(interrupt))
    assert folder.status["state"] == "interrupted"
    assert folder.status["step"] == 9
    assert folder.trajectory()["step"].max() < 9
    launch(SPEC, folder, "inline")
    assert_same_run(folder, whole)


def test_a_run_begun_in_one_process_stays_in_one(tmp_path):
    folder = new_folder(tmp_path / "run")
    count = iter(range(100))
    with pytest.raises(Interrupted):
        train(SPEC, folder, stop=lambda: next(count) == 5)
    with pytest.raises(RunFolderError, match=r"was begun in one process; .*--launcher inline"):
        launch(SPEC, folder, "processes")


def test_a_run_that_ends_in_an_error_says_so(tmp_path):
    def full(measured):
        raise OSError(errno.ENOSPC, "No space left on device")

    folder = new_folder(tmp_path / "run")
    with pytest.raises(OSError, match="No space left"):
        launch(SPEC, folder, Scripted(), progress=full)
    assert folder.status["state"] == "failed"
    assert folder.status["error"] == "OSError: [Errno 28] No space left on device"
    assert set(folder.status["shards"].values()) <= {"interrupted", "finished"}, "the shards were asked to stop"


def test_where_the_system_does_not_say_which_cores_are_ours_there_is_a_worker_for_each(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert Processes(Order()).workers == 7


def test_unknown_launchers_and_missing_packages_say_what_there_is(tmp_path, monkeypatch):
    folder = new_folder(tmp_path / "run")
    with pytest.raises(ValueError, match="expected a launcher among inline, processes, ray, slurm, got 'cloud'"):
        launch(SPEC, folder, "cloud")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"needs ray, which is not installed: pip install 'grokscape\[ray\]'"):
        launch(SPEC, folder, "ray")


def worker_pids(folder: Path) -> list[int]:
    """Processes that train shards of the folder, from /proc."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = place.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"grokscape.studies.worker" in words and str(folder).encode() in b" ".join(words):
            found.append(int(place.parent.name))
    return found


LONG = tiny.spec(("baseline", "held", "paper"), seeds=4, precision="float64", steps=150)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="finds workers in /proc")
def test_workers_killed_by_the_system_are_replaced(tmp_path):
    whole, folder = new_folder(tmp_path / "whole", LONG), new_folder(tmp_path / "run", LONG)
    train(LONG, whole)
    killed = []

    def kill_one(measured):
        pids = worker_pids(folder.path)
        if not killed and measured.step > 5 and pids:
            os.kill(pids[0], signal.SIGKILL)
            killed.append(pids[0])

    launch(LONG, folder, "processes", workers=2, progress=kill_one, checkpoint_seconds=0.05)
    assert killed
    assert_same_run(folder, whole)


DRIVER = """
import sys
from grokscape.store import RunFolder
from grokscape.studies import StudySpec
from grokscape.studies.launchers import launch
folder = RunFolder.open(sys.argv[1])
launch(StudySpec.model_validate(folder.spec), folder, "processes", workers=2, checkpoint_seconds=0.05)
"""


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="finds workers in /proc")
def test_workers_save_and_stop_when_the_process_that_started_them_is_killed(tmp_path):
    spec = LONG.model_copy(update={"steps": 3000})
    folder = new_folder(tmp_path / "run", spec)
    sources = str(Path(studies.__file__).parents[2])
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, folder.path], env={**os.environ, "PYTHONPATH": sources})
    wait_until(lambda: len(list(folder.path.glob("shards/*/progress.json"))) == 2)
    driver.kill()
    driver.wait()
    wait_until(lambda: not worker_pids(folder.path))
    states = [shard.folder.status["state"] for shard in shards_of(folder, spec, 2)]
    assert states == ["interrupted", "interrupted"]


def wait_until(condition, seconds=600):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def test_gpus_are_taken_in_turn(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    launcher = Processes(Order(device="cuda", workers=3))
    assert [launcher._devices.get() for _ in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert Processes(Order(device="cuda")).workers == 2


HOLDER = """
import fcntl, sys
with open(sys.argv[1], "a") as lock:
    fcntl.lockf(lock, fcntl.LOCK_EX)
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_a_worker_of_an_earlier_sitting_is_waited_for(tmp_path, whole):
    folder = new_folder(tmp_path / "run")
    lock = shards_of(folder, SPEC, 2)[0].folder.path / ".lock"
    busy = []
    with subprocess.Popen(
        [sys.executable, "-S", "-c", HOLDER, lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as worker:
        assert worker.stdout.readline()
        threading.Timer(0.5, worker.stdin.close).start()
        with pytest.warns(UserWarning, match="waiting for workers of an earlier sitting"):
            launch(SPEC, folder, Scripted(lambda shard, call: busy.append(RunFolder(shard).in_use)))
    assert busy == [False, False]
    assert_same_run(folder, whole)


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_that_knows_no_locks_forbids_nothing(tmp_path, monkeypatch, code):
    def none(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.lockf", none)
    folder = new_folder(tmp_path / "run")
    with folder.claim():
        pass
    assert not folder.in_use


def test_a_file_that_is_replaced_while_it_is_read_over_nfs_is_read_again(tmp_path, monkeypatch):
    folder, read, lost = new_folder(tmp_path / "run"), Path.read_text, iter([True, True])

    def stale(path, **settings):
        if next(lost, False):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return read(path, **settings)

    folder.write_status(state="running")
    monkeypatch.setattr(Path, "read_text", stale)
    assert folder.status == {"state": "running"}
    assert next(lost, None) is None


def test_a_run_remembers_the_kind_of_device_that_was_asked_for(tmp_path):
    def on_its_gpu(shard, call):
        Inline(Order())(shard)
        folder = RunFolder(shard)
        folder.write_status(**{**folder.status, "device": "cuda:1"})

    folder = new_folder(tmp_path / "run")
    launch(SPEC, folder, Scripted(on_its_gpu), device="cuda")
    assert folder.status["device"] == "cuda"


def test_a_device_of_other_machines_need_not_be_here(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    for launcher in ELSEWHERE:
        assert checked_device("cuda", launcher) == "cuda"
        with pytest.raises(ValueError, match=f"expected 'cuda', one of which {launcher} gives .* got 'cuda:1'"):
            checked_device("cuda:1", launcher)
        for wrong in ("gpu", "meta"):
            with pytest.raises(ValueError, match=f"expected a device of this machine .*got '{wrong}'"):
                checked_device(wrong, launcher)
