"""A study of tensors and a network of one's own, from `grokscape.run` to opening its folder again."""

import pytest
import torch
from torch import nn

import grokscape as gs
from grokscape.models import ModuleModel
from grokscape.store import RunFolderError
from grokscape.studies import Arm, StudySpec
from grokscape.testbeds import TensorTask
from grokscape.training.optimisers import AdamW


def task(shift=0.0):
    generator = torch.Generator().manual_seed(0)
    return TensorTask(name="mine", inputs=torch.randn(40, 5, generator=generator) + shift, labels=torch.arange(40) % 3)


def study(steps=6):
    def network():
        return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))

    arms = (Arm(name="baseline", role="baseline"), Arm(name="shuffled", testbed={"random_labels": True}))
    return StudySpec(
        name="own", testbed=task(), model=ModuleModel(factory=network, head="2"), optimizer=AdamW(lr=0.01), arms=arms,
        steps=steps,
    )  # fmt: skip


def test_it_runs_and_opens_again(tmp_path):
    done = gs.run(study(), tmp_path / "run", seeds=2, report=False)
    assert done.trajectory["replica"].n_unique() == 4
    assert done.spec.testbed == task()
    assert done.spec.seeds == 2
    again = gs.load(tmp_path / "run")
    assert "own" in repr(again)
    assert again.trajectory.equals(done.trajectory)
    with pytest.raises(RunFolderError, match=r"does not hold its data; .* pass it as testbed= to grokscape.load"):
        assert again.spec
    assert gs.load(tmp_path / "run", testbed=task()).spec.testbed == task()
    with pytest.raises(RunFolderError, match=r"is a study of .*'digest': .*, not of"):
        assert gs.load(tmp_path / "run", testbed=task(shift=1)).spec


def test_it_goes_on_where_it_stopped(tmp_path, monkeypatch):
    class Stop(Exception):
        pass

    def stop(measured):
        raise Stop

    spec = study()
    whole = gs.run(spec, tmp_path / "whole", seeds=1, report=False)
    with pytest.raises(Stop):
        gs.run(spec, tmp_path / "run", seeds=1, report=False, progress=stop)
    with pytest.raises(RunFolderError, match="does not hold its data"):
        gs.resume(tmp_path / "run", report=False)
    monkeypatch.setattr(ModuleModel, "make", lambda self: spec.model.factory())
    done = gs.resume(tmp_path / "run", testbed=task(), report=False)
    assert done.trajectory.equals(whole.trajectory)


def test_other_processes_do_not_have_it(tmp_path):
    with pytest.raises(ValueError, match="launcher 'processes' trains in other processes, where your tensors are not"):
        gs.run(study(), tmp_path / "run", launcher="processes")
    assert not (tmp_path / "run").exists()
