"""Our own presets: specifications that train, and designs that can answer what they ask."""

import json

import pytest

import grokscape as gs
from grokscape.analysis.design import arms_of
from grokscape.studies import StudySpec
from grokscape.studies.presets import PRESETS

NECESSITY = [name for name in PRESETS if name.startswith("necessity")]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_survives_json_and_trains(name, tmp_path):
    spec = gs.preset(name)
    assert StudySpec.model_validate(json.loads(spec.model_dump_json())) == spec
    assert spec.name == name
    evaluation = spec.evaluation.model_copy(update={"steps": (0, 2), "every": None, "max_samples": 200})
    study = gs.run(spec.model_copy(update={"evaluation": evaluation, "steps": 2, "seeds": 1}),
                   out=tmp_path / "run", report=False)
    assert set(study.trajectory["arm"]) == {arm.name for arm in spec.arms}
    assert study.trajectory["train/loss"].is_finite().all()


def test_the_demo_says_how_many_arms_the_whole_study_has_more():
    demo, whole = gs.preset("quickstart"), gs.preset("necessity")
    assert f"`necessity` has {len(whole.arms) - len(demo.arms)} more." in demo.description


@pytest.mark.parametrize("name", NECESSITY)
def test_a_study_of_necessity_holds_each_property_by_two_hands_and_has_a_matched_level(name):
    spec = gs.preset(name)
    assert spec.seeds >= 8
    arms = arms_of(json.loads(spec.model_dump_json()), {}, [])
    for wanted in ("flatness",) if name == "necessity-layers" else ("flatness", "collapse"):
        hands = {arm.hand for arm in arms if any(a.property == wanted and a.goal == "block" for a in arm.aims)}
        assert len(hands) >= 2, (wanted, hands)
    assert any(arm.control == "matched-level" for arm in spec.arms)
    held = [arm for arm in arms if arm.role == "manipulation" and not arm.name.endswith("promoted")]
    assert all(any(aim.goal == "block" for aim in arm.aims) for arm in held)
    helped = {aim.property for arm in held for aim in arm.aims if aim.goal == "promote"}
    assert not helped & {"flatness", "collapse"}
