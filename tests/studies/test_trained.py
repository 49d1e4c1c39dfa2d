"""Networks taken out of a run folder are the ones that its trajectory measured."""

import pytest
import torch

import grokscape as gs
import tiny
from grokscape.store import RunFolder, RunFolderError
from grokscape.studies import StudySpec
from grokscape.studies.shards import collect, shards_of, train_shard

MEASURES = ["relative_flatness", "cdnv", "nc4", "head_norm", "weight_norm"]
DIGITS = {"kind": "digits", "train_samples": 60, "inputs": "image"}
MODELS = {
    "quadratic": {},
    "one-hot mlp": {"model": {"kind": "mlp", "widths": [16, 8]}},
    "embedded mlp": {"model": {"kind": "mlp", "widths": [16], "embedding": 4, "bias": False}},
    "transformer": {"model": {"kind": "transformer", "width": 16, "heads": 2, "bias": True}},
    "tied": {"model": {"kind": "transformer", "width": 16, "heads": 2, "layers": 1, "norm": "post", "tied": True}},
    "cnn": {"model": {"kind": "small_cnn", "channels": [4, 8]}, "testbed": DIGITS},
    "batch norm": {"model": {"kind": "module", "factory": "probed:Normed", "head": "fc"}, "testbed": DIGITS},
}
CHANGED = {
    "rescaled": [{"kind": "rescale", "factor": 3.0}],
    "normalised": [{"kind": "normalize_features", "radius": 2.0}],
    "unplugged": [{"kind": "normalize_features"}, {"kind": "unplug", "step": 20, "lr": 0.01}],
}


def specification(arms=("baseline", "held"), **changes):
    evaluation = {"measures": MEASURES, "points": 4}
    return StudySpec.model_validate(tiny.study(arms, precision="float64", evaluation=evaluation, **changes))


def assert_measured(study, arm, seed):
    """Measured as anybody's model, it has the numbers of the trajectory's last row."""
    model, train, test, step = study.trained(arm, seed)
    rows = study.trajectory.filter(arm=arm, seed=seed, step=step)
    found = gs.measure(model, train, test_loader=test, measures=[*MEASURES, "loss", "accuracy"])
    for name, value in found.items():
        side, _, measure = name.rpartition("/")
        side = "params" if measure.endswith("_norm") else side or "train"
        assert value == pytest.approx(rows[f"{side}/{measure}"].item(), rel=1e-6, abs=1e-12), name


@pytest.mark.filterwarnings("ignore::grokscape.measures.MeasureWarning")
@pytest.mark.parametrize("name", MODELS)
def test_every_network_measures_as_it_did_in_its_run(name, tmp_path):
    study = gs.run(specification(**MODELS[name]), tmp_path / "run", report=False)
    for arm, seed in (("baseline", 1), ("held", 0)):
        assert_measured(study, arm, seed)


@pytest.mark.filterwarnings("ignore::grokscape.measures.MeasureWarning")
def test_what_an_arm_does_to_features_stays_done(tmp_path):
    arms = [{"name": name, "interventions": acts} for name, acts in CHANGED.items()]
    study = gs.run(specification(["baseline", *arms]), tmp_path / "run", report=False)
    for arm in CHANGED:
        assert_measured(study, arm, 1)


def test_shards_keep_their_own_networks(tmp_path):
    spec = specification(seeds=3)
    whole = gs.run(spec, tmp_path / "whole", report=False)
    folder = RunFolder.create(tmp_path / "cut", spec.model_dump(mode="json"))
    shards = shards_of(folder, spec, 2)
    for shard in shards:
        train_shard(str(shard.folder.path), threads=0)
    collect(folder, spec, shards)
    for seed in range(3):
        expected, found = (study.trained("held", seed).model.state_dict() for study in (whole, gs.load(folder.path)))
        assert all(torch.allclose(found[name], value, rtol=1e-9) for name, value in expected.items())


def test_it_is_a_module_like_any_other(tmp_path):
    study = gs.run(specification(**MODELS["transformer"]), tmp_path / "run", report=False)
    model, (inputs, labels), _, step = study.trained("baseline", 0)
    assert step == 40
    assert not model.training
    assert isinstance(model.head, torch.nn.Linear)
    flatness = gs.layer_flatness(model, (inputs, labels), ["layers.0.qkv", "embedding", "head"], probes=8)
    assert flatness["head"].value == pytest.approx(gs.measure(model, (inputs, labels))["relative_flatness"], rel=1e-9)
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.01), []
    for _ in range(5):
        optimizer.zero_grad()
        losses.append(torch.nn.functional.cross_entropy(model(inputs), labels))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    again = study.trained("baseline", 0).model
    assert not torch.equal(model.head.weight, again.head.weight)


@pytest.mark.parametrize("arm", ["baseline", *CHANGED])
def test_it_can_be_saved_and_moved(arm, tmp_path):
    arms = [{"name": name, "interventions": acts} for name, acts in CHANGED.items()]
    study = gs.run(specification(["baseline", *arms]), tmp_path / "run", report=False)
    model, (inputs, _), _, _ = study.trained(arm, 0)
    logits = model(inputs)
    torch.save(model, tmp_path / "model.pt")
    assert torch.equal(torch.load(tmp_path / "model.pt", weights_only=False)(inputs), logits)
    assert model.head.to("meta")(torch.empty(3, 16, device="meta")).shape == (3, 7)


def test_a_replica_that_diverged_is_as_it_was_left(tmp_path):
    study = gs.run(specification(["baseline", {"name": "diverges", "optimizer": {"lr": 1e200}}]), tmp_path / "run",
                   report=False)
    assert study.trained("baseline", 0).step == 40
    assert study.trained("diverges", 0).step == study.folder.status["replicas"][2]["diverged_at"] < 40


def test_what_is_not_there_is_named(tmp_path):
    study = gs.run(specification(), tmp_path / "run", report=False)
    with pytest.raises(ValueError, match="has no arm 'hold'; its arms are baseline, held"):
        study.trained("hold", 0)
    with pytest.raises(ValueError, match="expected a seed from 0 to 1, as in the trajectory, got 2"):
        study.trained("held", 2)
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        path.unlink()
    with pytest.raises(RunFolderError, match=r"expected a checkpoint in .*run, got none"):
        study.trained("held", 1)
