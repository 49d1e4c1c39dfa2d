"""Shards as Ray tasks: on a real cluster of two nodes, one of which goes away, and on a pretended one."""

import os
import socket
import subprocess
import sys
import threading
import types
from pathlib import Path

import pytest

import tiny
from grokscape import studies
from grokscape.store import RunFolder
from grokscape.studies import train
from grokscape.studies.launchers import Ray, _knock_at, launch
from grokscape.studies.shards import STOP, Order, shards_of
from grokscape.training import Interrupted

SPEC = tiny.spec(("baseline", "held", "paper"), seeds=4, precision="float64", steps=400)

DRIVER = """
import sys
import ray
from ray.cluster_utils import Cluster
from grokscape.store import RunFolder
from grokscape.studies import StudySpec
from grokscape.studies.launchers import launch
from grokscape.studies.shards import shards_of

folder = RunFolder.open(sys.argv[1])
spec = StudySpec.model_validate(folder.spec)
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
second = cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()
ray.init(address=cluster.address, log_to_driver=False)
removed = []

def lose_a_node(measured):
    if not removed and all(shard.progress and shard.progress.step > 20 for shard in shards_of(folder, spec, 2)):
        cluster.remove_node(second)
        removed.append(measured.step)

launch(spec, folder, "ray", workers=2, progress=lose_a_node, checkpoint_seconds=0.1)
assert removed, "the run was over before a node could go"
assert ray.is_initialized(), "a cluster that somebody else entered is left as it is"
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.slow
def test_a_node_that_goes_away_costs_nothing_but_time(tmp_path):
    pytest.importorskip("ray")
    whole = RunFolder.create(tmp_path / "whole", SPEC.model_dump(mode="json"))
    train(SPEC, whole)
    folder = RunFolder.create(tmp_path / "run", SPEC.model_dump(mode="json"))
    environment = {**os.environ, "PYTHONPATH": str(Path(studies.__file__).parents[2]), "RAY_AUTH_MODE": "disabled"}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, folder.path], env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert folder.status["state"] == "finished"
    assert len(shards_of(folder, SPEC, 2)) == 2
    ours, theirs = folder.trajectory(), whole.trajectory()
    assert ours.columns == theirs.columns
    for name in ours.columns:
        if ours[name].dtype.is_float():
            assert ((ours[name] - theirs[name]).abs().max() or 0) < 1e-9, name
        else:
            assert ours[name].equals(theirs[name]), name


class TaskError(Exception):
    """What Ray raises for an error in a task."""

    def __init__(self, cause):
        super().__init__(f"a traceback of many lines: {cause}")
        self.cause = cause


class PretendedRay(types.ModuleType):
    """A Ray cluster whose tasks wait for a machine, unless they fail at once."""

    def __init__(self, failure=None, **resources):
        super().__init__("ray")
        self.exceptions = types.SimpleNamespace(RayTaskError=TaskError)
        self.failure, self.resources, self.cancelled = failure, resources, threading.Event()

    def is_initialized(self):
        return True

    def cluster_resources(self):
        return self.resources

    def remote(self, **needs):
        self.needs = needs
        return lambda function: types.SimpleNamespace(remote=lambda *told: "task")

    def wait(self, tasks, timeout):
        return (tasks, []) if self.failure or self.cancelled.wait(0.05) else ([], tasks)

    def cancel(self, task):
        self.cancelled.set()

    def get(self, task):
        raise TaskError(self.failure or RuntimeError("cancelled"))


def test_ray_tasks_that_wait_for_a_machine_are_taken_back_when_the_run_stops(tmp_path, monkeypatch):
    ray = PretendedRay(CPU=8.0)
    monkeypatch.setitem(sys.modules, "ray", ray)
    folder = RunFolder.create(tmp_path / "run", SPEC.model_dump(mode="json"))
    shards_of(folder, SPEC, 2)
    threading.Timer(1.0, (folder.path / "shards" / STOP).touch).start()
    with pytest.warns(UserWarning, match="Ray cluster has no GPU yet"), pytest.raises(Interrupted):
        launch(SPEC, folder, "ray", device="cuda")
    assert ray.cancelled.is_set()
    assert ray.needs["num_gpus"] == 1


def test_ray_has_a_worker_for_each_gpu_or_core(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", PretendedRay(CPU=8.0, GPU=2.0))
    assert Ray(Order(device="cuda")).workers == 2
    assert Ray(Order()).workers == 8
    assert Ray(Order(workers=3)).workers == 3


def test_an_error_in_a_ray_task_is_told_as_it_was_raised(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", PretendedRay(ValueError("no such device"), CPU=1.0))
    with pytest.raises(ValueError, match=r"^no such device$"):
        launch(SPEC, RunFolder.create(tmp_path / "run", SPEC.model_dump(mode="json")), "ray")


@pytest.mark.parametrize("answers", [True, False])
def test_a_cluster_that_does_not_let_us_in_says_why(tmp_path, monkeypatch, answers):
    asked = []

    def init(**settings):
        asked.append(settings)
        raise RuntimeError("no authentication token was found")

    ray = PretendedRay()
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init, raising=False)
    monkeypatch.setitem(sys.modules, "ray", ray)
    server = socket.create_server(("127.0.0.1", 0))
    address = f"127.0.0.1:{server.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    if not answers:
        server.close()
    folder = RunFolder.create(tmp_path / "run", SPEC.model_dump(mode="json"))
    words = "no authentication token was found" if answers else r"\[Errno \d+\] Connection refused"
    with pytest.raises(ValueError, match=rf"lets us in \(RAY_ADDRESS is {address}\): {words}"):
        launch(SPEC, folder, "ray", workers=3)
    server.close()
    assert len(asked) == answers, "where nobody listens Ray would take two minutes to find out"
    known = folder.status
    assert (known["launcher"], known["workers"], known["state"]) == ("ray", 3, "interrupted"), "resumed as it was begun"


@pytest.mark.parametrize("address", ["auto", "local", "ray://far:10001", "not set: a cluster on this machine"])
def test_addresses_that_are_not_of_a_machine_are_left_to_ray(monkeypatch, address):
    monkeypatch.setattr("socket.create_connection", None)
    _knock_at(address)
