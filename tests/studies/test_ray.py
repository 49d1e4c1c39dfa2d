"""A Ray cluster of two nodes, one of which goes away while it trains. Minutes long, hence slow."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import tiny
from grokscape import studies
from grokscape.store import RunFolder
from grokscape.studies import train
from grokscape.studies.shards import shards_of

pytestmark = pytest.mark.slow
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
