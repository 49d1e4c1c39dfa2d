"""A run follows from its specification, whatever the session has set that starts it, and leaves that as it was."""

import contextlib

import pytest
import torch

import grokscape as gs
import tiny
from grokscape.store import RunFolder
from grokscape.studies import train
from grokscape.training import Interrupted

GENERATED = {"kind": "sentiment", "train_samples": 20, "test_samples": 20}
EMBEDDED = {"kind": "mlp", "widths": [8], "embedding": 4}
MODULE = {"kind": "module", "factory": "probed:Normed", "head": "fc"}
STUDIES = {
    "generated": {"testbed": GENERATED, "model": EMBEDDED, "arms": ["baseline", "held", "paper", "since step 10"]},
    "module": {"testbed": {"kind": "digits", "train_samples": 20, "inputs": "image"}, "model": MODULE},
}


@contextlib.contextmanager
def other_dtype():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


SESSIONS = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "dtype": other_dtype,
    "device": lambda: torch.device("meta"),
}


def settings():
    return torch.is_autocast_enabled("cpu"), torch.get_default_dtype(), torch.get_default_device()


def found(path, changes):
    spec = tiny.spec(steps=12, seeds=1, **changes)
    folder = RunFolder.create(path, spec.model_dump(mode="json"))
    train(spec, folder)
    return folder.trajectory(), gs.load(path).trained("held", 0).model.state_dict()


@pytest.mark.filterwarnings("ignore::grokscape.measures.MeasureWarning")
@pytest.mark.parametrize("name", STUDIES)
def test_a_study_is_the_same_in_any_session(name, tmp_path):
    frame, weights = found(tmp_path / "plain", STUDIES[name])
    for kind, session in SESSIONS.items():
        with session():
            before = settings()
            again, own = found(tmp_path / kind, STUDIES[name])
            assert settings() == before, kind
        assert again.equals(frame), kind
        assert all(torch.equal(own[key], weight) for key, weight in weights.items()), kind


def test_going_on_leaves_the_generator_alone(tmp_path):
    spec = tiny.spec()
    folder = RunFolder.create(tmp_path / "run", spec.model_dump(mode="json"))
    with pytest.raises(Interrupted):
        train(spec, folder, stop=iter([False] * 9 + [True]).__next__)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    train(spec, folder)
    assert torch.equal(torch.get_rng_state(), before)
