"""Shards as Slurm jobs, with pretended commands in place of Slurm's own."""

import os
import threading
import time

import pytest

import fake_slurm
import tiny
from grokscape.store import KEYS, RunFolder
from grokscape.studies import slurm as module
from grokscape.studies import train
from grokscape.studies.launchers import launch
from grokscape.studies.shards import STOP, Order, shards_of
from grokscape.studies.slurm import Slurm
from grokscape.training import Interrupted
from grokscape.workflow import run

SPEC = tiny.spec(("baseline", "held"), seeds=2, precision="float64", steps=6)


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """The folder of a pretended Slurm that is on the PATH."""
    place = fake_slurm.install(tmp_path / "slurm's")
    monkeypatch.setenv("PATH", f"{place}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(module, "_ASK_SECONDS", 0.2)
    return place


@pytest.fixture
def folder(tmp_path):
    """A run folder with a name that needs care."""
    return RunFolder.create(tmp_path / "my 100%j run", SPEC.model_dump(mode="json"))


@pytest.fixture
def shard(folder):
    """The place of its only shard."""
    return shards_of(folder, SPEC, 1)[0].folder.path


def jobs(cluster):
    return {job.name: job.read_text().split("|")[0] for job in (cluster / "jobs").iterdir()}


def end(cluster, number, state="COMPLETED"):
    """Let a job that waits be over."""
    job = cluster / "jobs" / number
    (cluster / "ended").write_text(f"{state}|{job.read_text().split('|')[1]}")
    os.replace(cluster / "ended", job)


def in_a_thread(launcher, shard):
    """Train a shard in a thread; returns the thread and a list that gets what is raised."""
    raised = []

    def call():
        try:
            launcher(shard)
        except (RuntimeError, ValueError) as error:
            raised.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    return thread, raised


def assert_all_end(*threads):
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def test_a_job_gives_the_same_run_and_leaves_plain_files(cluster, folder, tmp_path):
    whole = RunFolder.create(tmp_path / "whole", SPEC.model_dump(mode="json"))
    train(SPEC, whole)
    launch(SPEC, folder, "slurm", workers=1)
    ours, theirs = folder.trajectory(), whole.trajectory()
    assert folder.status["state"] == "finished"
    assert ours.select(KEYS).equals(theirs.select(KEYS))
    for name in set(ours.columns) - set(KEYS):
        assert ((ours[name] - theirs[name]).abs().max() or 0) < 1e-9, name
    assert jobs(cluster) == {"1": "COMPLETED"}
    kinds = {path.suffix for path in folder.path.rglob("*") if path.is_file() and path.name != ".lock"} - {""}
    assert kinds == {".json", ".parquet", ".safetensors", ".txt"}


def test_what_a_user_may_want_to_decide_is_left_to_the_variables_of_sbatch(cluster, shard):
    (cluster / "fate").write_text("COMPLETED")
    Slurm(Order())(shard)
    Slurm(Order(device="cuda"))(shard)
    options, *script = (cluster / "script-2").read_text().splitlines()
    named = {word.partition("=")[0] for word in options.split() if word.startswith("--")}
    assert named == {"--parsable", "--job-name", "--output", "--open-mode"}
    assert f"--output={shard}/log.txt".replace("%", "%%") in options
    asked = [line for line in script if line.startswith("#SBATCH")]
    assert asked == ["#SBATCH --cpus-per-task=1", "#SBATCH --gres=gpu:1"]
    assert "gres" not in (cluster / "script-1").read_text()


def test_jobs_for_another_cluster_are_looked_for_there(cluster, shard, monkeypatch):
    monkeypatch.setenv("SBATCH_CLUSTERS", "far")
    Slurm(Order())(shard)
    assert RunFolder(shard).finished
    assert jobs(cluster) == {"1": "COMPLETED"}


def test_a_refusal_is_told_in_the_words_of_sbatch(cluster, folder):
    (cluster / "refusal").write_text("sbatch: error: invalid partition specified: nosuch")
    with pytest.raises(ValueError, match=r"Slurm took no job \(sbatch: error: invalid partition .*SBATCH_PARTITION"):
        launch(SPEC, folder, "slurm", workers=1)


@pytest.mark.filterwarnings("ignore:jobs wait", "ignore:Slurm takes no more")
def test_where_slurm_takes_no_more_jobs_one_that_it_took_is_waited_for(cluster, folder):
    launcher = Slurm(Order())
    first, second = (each.folder.path for each in shards_of(folder, SPEC, 2))
    (cluster / "full").touch()
    thread, _ = in_a_thread(launcher, first)
    wait_until(lambda: jobs(cluster) == {"1": "PENDING"})
    (cluster / "refusal").write_text("sbatch: error: QOSMaxSubmitJobPerUserLimit")
    other, raised = in_a_thread(launcher, second)
    time.sleep(1.0)
    assert other.is_alive()
    (cluster / "refusal").unlink()
    wait_until(lambda: jobs(cluster) == {"1": "PENDING", "2": "PENDING"})
    end(cluster, "1")
    end(cluster, "2")
    assert_all_end(thread, other)
    assert not raised


LIMIT = "sbatch: error: QOSMaxSubmitJobPerUserLimit"
TIMEOUT = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"
AWAY = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"


@pytest.mark.filterwarnings("ignore:jobs wait", "ignore:Slurm takes no more")
def test_a_limit_that_jobs_of_an_earlier_sitting_use_up_is_waited_out(cluster, folder):
    first, second = (each.folder.path for each in shards_of(folder, SPEC, 2))
    (cluster / "full").touch()
    earlier, _ = in_a_thread(Slurm(Order()), first)
    wait_until(lambda: jobs(cluster) == {"1": "PENDING"})
    (cluster / "refusal").write_text(LIMIT)
    launcher = Slurm(Order())
    thread, raised = in_a_thread(launcher, second)
    wait_until(lambda: f"Slurm takes no more jobs for now ({LIMIT})" in launcher._told)
    end(cluster, "1")
    (cluster / "refusal").unlink()
    wait_until(lambda: jobs(cluster) == {"1": "COMPLETED", "2": "PENDING"})
    end(cluster, "2")
    assert_all_end(earlier, thread)
    assert not raised


@pytest.mark.filterwarnings("ignore:jobs wait", "ignore:Slurm takes no more")
def test_a_job_that_slurm_took_without_saying_so_in_time_is_found(cluster, shard):
    (cluster / "full").touch()
    (cluster / "late").write_text(TIMEOUT)
    launcher = Slurm(Order())
    thread, raised = in_a_thread(launcher, shard)
    wait_until(lambda: any("jobs wait" in told for told in launcher._told))
    assert f"Slurm takes no more jobs for now ({TIMEOUT})" in launcher._told
    assert jobs(cluster) == {"1": "PENDING"}
    end(cluster, "1")
    assert_all_end(thread)
    assert not raised


@pytest.mark.filterwarnings("ignore:jobs wait", "ignore:Slurm takes no more")
def test_a_job_is_followed_by_another_as_soon_as_the_controller_is_back(cluster, shard):
    (cluster / "full").touch()
    launcher = Slurm(Order())
    thread, _ = in_a_thread(launcher, shard)
    wait_until(lambda: jobs(cluster) == {"1": "PENDING"})
    end(cluster, "1")
    thread.join(60)
    (cluster / "away").touch()
    thread, raised = in_a_thread(launcher, shard)
    wait_until(lambda: f"Slurm takes no more jobs for now ({AWAY})" in launcher._told)
    (cluster / "away").unlink()
    wait_until(lambda: jobs(cluster) == {"1": "COMPLETED", "2": "PENDING"})
    end(cluster, "2")
    assert_all_end(thread)
    assert not raised


@pytest.mark.filterwarnings("ignore:jobs wait", "ignore:Slurm takes no more")
def test_whoever_waits_for_slurm_to_take_a_job_can_be_stopped(cluster, folder):
    first, second = (each.folder.path for each in shards_of(folder, SPEC, 2))
    (cluster / "full").touch()
    launcher = Slurm(Order())
    one, _ = in_a_thread(launcher, first)
    wait_until(lambda: jobs(cluster) == {"1": "PENDING"})
    (cluster / "refusal").write_text(LIMIT)
    other, raised = in_a_thread(launcher, second)
    time.sleep(0.5)
    (folder.path / "shards" / STOP).touch()
    assert_all_end(one, other)
    assert [str(error) for error in raised] == [LIMIT]
    assert jobs(cluster) == {"1": "CANCELLED"}


@pytest.mark.parametrize("words", ["Detected 1 oom-kill event", "none"])
def test_a_job_that_was_killed_is_noticed_without_accounting(cluster, shard, monkeypatch, words):
    def submit(*told, take=Slurm._submit):
        with (shard / "log.txt").open("a") as log:
            log.write(words.replace("none", ""))
        return take(*told)

    monkeypatch.setattr(Slurm, "_submit", submit)
    (cluster / "fate").write_text("OUT_OF_MEMORY")
    (shard / "log.txt").write_text("words of an earlier job\n")
    with pytest.raises(RuntimeError, match=f"^Slurm job 1 ended, state OUT_OF_MEMORY; last words: {words}$"):
        Slurm(Order())(shard)


def test_waiting_jobs_say_why_and_are_taken_back_when_the_run_stops(cluster, folder):
    (cluster / "full").touch()
    shards_of(folder, SPEC, 2)
    threading.Timer(2.0, (folder.path / "shards" / STOP).touch).start()
    with (
        pytest.warns(UserWarning, match=r"jobs wait in Slurm's queue \(Resources\); `squeue --me`"),
        pytest.raises(Interrupted),
    ):
        launch(SPEC, folder, "slurm", workers=2)
    assert jobs(cluster) == {"1": "CANCELLED", "2": "CANCELLED"}


@pytest.mark.filterwarnings("ignore:jobs wait")
def test_a_job_that_a_killed_launcher_left_in_the_queue_is_waited_for(cluster, shard):
    (cluster / "full").touch()
    first, _ = in_a_thread(Slurm(Order()), shard)
    wait_until(lambda: jobs(cluster) == {"1": "PENDING"})
    second, _ = in_a_thread(Slurm(Order()), shard)
    time.sleep(1.0)
    assert second.is_alive()
    end(cluster, "1")
    assert_all_end(first, second)
    assert jobs(cluster) == {"1": "COMPLETED"}


@pytest.mark.filterwarnings("ignore:jobs wait")
def test_a_job_goes_on_while_the_controller_is_away(cluster, shard):
    (cluster / "full").touch()
    thread, raised = in_a_thread(Slurm(Order()), shard)
    wait_until(lambda: jobs(cluster) == {"1": "PENDING"})
    (cluster / "away").touch()
    time.sleep(1.0)
    assert thread.is_alive()
    end(cluster, "1", "FAILED")
    (cluster / "away").unlink()
    thread.join(60)
    assert "state FAILED" in str(raised)


def test_filters_of_squeue_hide_no_jobs(cluster, shard, monkeypatch):
    monkeypatch.setenv("SQUEUE_PARTITION", "other")
    monkeypatch.setenv("SBATCH_PARTITION", "mine")
    for verb in ("sbatch", "squeue"):
        text = (cluster / verb).read_text()
        kept = f"open({str(cluster / 'seen')!r}, 'a').write(str(sorted(k for k in os.environ if k[:7] in "
        (cluster / verb).write_text(text.replace("options =", kept + "('SQUEUE_', 'SBATCH_'))) + '\\n')\noptions =", 1))
    (cluster / "fate").write_text("COMPLETED")
    Slurm(Order())(shard)
    assert set((cluster / "seen").read_text().splitlines()) == {"['SBATCH_PARTITION']"}


def test_slurm_says_so_where_there_is_none_before_there_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"no Slurm here .*choose another --launcher"):
        run(SPEC, tmp_path / "run", launcher="slurm")
    assert not (tmp_path / "run").exists()
