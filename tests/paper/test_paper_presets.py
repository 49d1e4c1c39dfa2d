"""The presets of the paper's experiments: complete, at the paper's settings, and trainable at small scale."""

import json
from dataclasses import replace

import pytest
import torch

import grokscape as gs
from grokscape.studies import StudySpec
from grokscape.studies.launch import plan
from grokscape.studies.paper import PAPER_PRESETS, SAME_RUNS
from grokscape.training import Engine

pytest.importorskip("transformers")
FIGURES = {f"fig{number}" for number in range(1, 21)}


def test_every_figure_has_its_runs():
    assert {*PAPER_PRESETS, *SAME_RUNS} >= FIGURES
    assert set(SAME_RUNS.values()) <= set(PAPER_PRESETS)
    assert gs.preset("fig9").name == "fig4"
    assert set(PAPER_PRESETS) <= set(gs.presets())


@pytest.mark.parametrize("scale", ["paper", "small"])
@pytest.mark.parametrize("name", PAPER_PRESETS)
def test_a_preset_is_a_specification_that_survives_json(name, scale):
    spec = gs.preset(name, scale=scale)
    again = StudySpec.model_validate(json.loads(spec.model_dump_json()))
    assert again == spec
    assert spec.seeds == 3
    for part in (f"grokscape run {name}", "2509.17738", "Cost:"):
        assert part in spec.description
    assert ("--scale small" in spec.description) == (scale == "small")


@pytest.mark.parametrize("name", ["fig16", "fig18"])
def test_the_cost_of_text_counts_the_epochs_of_the_paper(name):
    assert "× 300 epochs ×" in gs.preset(name).description


def test_settings_of_the_paper():
    """Numbers of the paper, written down a second time."""
    fig4, fig2, fig13 = (gs.preset(name) for name in ("fig4", "fig2", "fig13"))
    assert [fig4.pair(k)[0] for k in range(3)] == [1, 42, 15213]
    assert (fig4.optimizer.lr, fig4.optimizer.momentum, fig4.optimizer.weight_decay) == (0.01, 0.9, 0.0)
    assert fig4.batch_size == 64
    assert fig4.steps == 400 * 781
    penalty, normalise, cap, unplug = fig4.arms[2].interventions
    assert [arm.name for arm in fig4.arms if arm.role == "control"] == ["constraints-alone", "schedule-alone"]
    assert fig4.arms[3].interventions == (normalise, cap)
    assert fig4.arms[4].interventions == (unplug,)
    assert (normalise.until, cap.until) == (None, None)
    assert (penalty.measure, penalty.strength, penalty.temperature) == ("relative_flatness_bound", 1e-2, 2.0)
    assert normalise.radius == 1
    assert cap.at_most == 50
    assert (unplug.step, unplug.lr, unplug.cosine, unplug.weight_decay) == (200 * 781, 0.1, True, 2e-4)
    assert fig2.steps == 250 * 781
    assert [i.strength for arm in fig2.arms[1:] for i in arm.interventions] == [1e-3]
    for name, stem, augment in (("fig6", "imagenet", "none"), ("fig7", "cifar", "crop_flip")):
        spec = gs.preset(name)
        assert [i.strength for arm in spec.arms[1:] for i in arm.interventions] == [1e-2, 1e-3, 1e-4, 1e-5, 1e-6]
        assert (spec.model.stem, spec.testbed.augment, spec.optimizer) == (stem, augment, fig2.optimizer)
    assert {"class_angle_min", "class_angle_max", "classes"} <= set(fig2.evaluation.measures)
    for name, of, values in (("fig11", 0, [0.5, 0.1, 1e-2, 1e-3, 1e-4]), ("fig12", 2, [20, 50, 100, 150, 200])):
        spec = gs.preset(name)
        assert (spec.optimizer, spec.model, spec.testbed, spec.steps) == (
            fig4.optimizer, fig4.model, fig4.testbed, fig4.steps)
        for arm, value in zip(spec.arms[1:], values, strict=True):
            changed = list(fig4.arms[2].interventions)
            changed[of] = replace(changed[of], **{"strength" if of == 0 else "at_most": value})
            assert arm.interventions == tuple(changed)
    assert (fig13.batch_size, fig13.arms[1].interventions[2].at_most) == (256, 150)
    assert (fig13.optimizer.lr, fig13.optimizer.momentum, fig13.arms[1].interventions[0]) == (0.01, 0.9, penalty)
    assert (fig13.steps, fig13.arms[2].interventions[-1].step * 2) == (300 * (126_689 // 256), fig13.steps)
    assert fig13.arms[2].interventions[-1].lr == 5e-2
    bert, gpt2 = gs.preset("fig16"), gs.preset("fig18")
    penalty, _, cap = bert.arms[1].interventions
    assert (bert.batch_size, penalty.strength, cap.at_most) == (32, 0.3, 30)
    assert (gpt2.batch_size, gpt2.arms[1].interventions[0].strength) == (64, 0.03)
    for text, lr in ((bert, 3e-3), (gpt2, 5e-3)):
        unplug = text.arms[2].interventions[-1]
        assert (text.optimizer.lr, unplug.lr, unplug.step * 2) == (1e-3, lr, text.steps)
        assert text.steps == 300 * (8544 // text.batch_size)
    fig1, code = gs.preset("fig1"), gs.preset("fig1-code")
    assert (fig1.steps, fig1.testbed.train_fraction, fig1.optimizer.lr) == (10**6, 0.5, 1e-4)
    assert (fig1.optimizer.weight_decay, fig1.optimizer.betas) == (1.0, (0.9, 0.98))
    assert (fig1.model.layers, fig1.model.heads, fig1.model.width) == (2, 4, 128)
    assert (fig1.testbed.operation, fig1.testbed.p) == ("x+y", 97)
    assert (code.steps, code.testbed.train_fraction) == (10**5, 0.2)
    assert (code.optimizer, code.model) == (fig1.optimizer, fig1.model)


@pytest.mark.parametrize("name", ["fig2", "fig4", "fig7", "fig13", "fig16", "fig18"])
def test_a_small_preset_trains_and_measures(name):
    spec = gs.preset(name, scale="small")
    spec = StudySpec.model_validate({**spec.model_dump(), "seeds": 1, "arms": spec.model_dump()["arms"][:2]})
    engine = Engine(plan(spec))
    before = engine.state.flat.clone()
    for step in range(2):
        engine.step(step)
    values = engine.measure(2)
    assert engine.state.alive.all()
    assert not torch.equal(engine.state.flat[0], engine.state.flat[1])
    assert not torch.equal(engine.state.flat, before)
    assert values["train/relative_flatness_bound"].isfinite().all()
    assert values["test/accuracy"].isfinite().all()


def test_one_scale_only():
    with pytest.raises(ValueError, match="'quickstart' has one scale only"):
        gs.preset("quickstart", scale="small")
    with pytest.raises(ValueError, match="did you mean"):
        gs.preset("fig21")
