"""Networks really grok: the law of the delay, and low precision. Minutes, so marked slow."""

import pytest
import torch

from grokscape.models import QuadraticMLP
from grokscape.studies import Arm, StudySpec, plan
from grokscape.testbeds import ModularArithmetic
from grokscape.training import AdamW, Engine, Evaluation

pytestmark = pytest.mark.slow


def first_steps(spec, every=10):
    """Step at which each replica first reaches 99 % train and 95 % test accuracy; NaN if it never does."""
    engine = Engine(plan(spec))
    train, test = (torch.full((len(engine.plan.replicas),), torch.nan) for _ in range(2))
    with torch.no_grad():
        for step in range(spec.steps):
            if step % every == 0:
                values = engine.measure(step)
                for first, name, threshold in ((train, "train/accuracy", 0.99), (test, "test/accuracy", 0.95)):
                    first[first.isnan() & (values[name] >= threshold)] = step
            engine.step(step)
    return train, test


def study(p, arms, steps, seeds, precision="float32"):
    return StudySpec(
        name="test",
        testbed=ModularArithmetic(operation="x+y", p=p, train_fraction=0.5),
        model=QuadraticMLP(width=128),
        optimizer=AdamW(lr=1e-2, weight_decay=1.0),
        arms=arms,
        seeds=seeds,
        steps=steps,
        evaluation=Evaluation(measures=("relative_flatness", "cdnv")),
        precision=precision,
    )


def test_time_to_generalise_goes_as_one_over_learning_rate_times_decay():
    decays = (0.5, 1.0, 2.0)
    arms = tuple(
        Arm(name=f"wd-{wd}", role="baseline" if wd == 1 else "control", optimizer={"weight_decay": wd}) for wd in decays
    )
    _, test = first_steps(study(23, arms, 2200, 4))
    medians = test.view(len(decays), -1).median(1).values
    assert not medians.isnan().any()
    products = medians * torch.tensor(decays)
    assert products.max() / products.min() < 1.5, products
    assert medians[0] > 1.5 * medians[1] > 2.25 * medians[2]


def test_grokking_survives_bfloat16_products():
    _, exact = first_steps(study(31, (Arm(name="baseline", role="baseline"),), 1200, 3))
    train, test = first_steps(study(31, (Arm(name="baseline", role="baseline"),), 1200, 3, "bf16"))
    assert (train <= 100).all()
    assert (test > 3 * train).all()
    assert (test.median() / exact.median() - 1).abs() < 0.5
