"""The paper's experiments on grokking: figures 1 and 20."""

from grokscape.models import Transformer
from grokscape.studies.paper_parts import CORE_MEASURES, Scale, baseline, describe
from grokscape.studies.spec import StudySpec
from grokscape.testbeds import ModularArithmetic
from grokscape.training import AdamW, Evaluation

_QUESTION = "When do relative flatness and neural collapse arrive: with memorisation, or with generalisation?"


def _spec(
    name: str, title: str, description: str, scale: Scale, fraction: float, steps: int, measures: tuple[str, ...]
) -> StudySpec:
    small = scale == "small"
    return StudySpec(
        name=name,
        title=title,
        question=_QUESTION,
        description=description,
        testbed=ModularArithmetic(operation="x+y", p=97, train_fraction=0.5 if small else fraction),
        model=Transformer(layers=2, heads=4, width=128),
        optimizer=AdamW(lr=1e-3 if small else 1e-4, weight_decay=1.0, betas=(0.9, 0.98), warmup=10),
        arms=(baseline(),),
        seeds=3,
        steps=steps,
        batch_size=512,
        evaluation=Evaluation(measures=measures, points=40 if small else 60, refine=None if small else 250),
    )


def fig1(scale: Scale) -> StudySpec:
    """Flatness and collapse over grokking, with the half and half split of the paper's text."""
    small = scale == "small"
    what = (
        "Figure 1 with ten times the learning rate and 2500 steps: x + y mod 97, half of the pairs for training."
        if small
        else "Figure 1 as in the text: x + y mod 97, 2-layer, 4-head decoder of width 128, half of the pairs for "
        "training, AdamW with lr 1e-4 and weight decay 1, 10^6 steps."
    )
    result = (
        "CDNV falls from early on, before memorisation ends; κ̄ rises with train accuracy and falls when "
        "generalisation begins."
    )
    cost = "minutes on 2 CPU cores." if small else "3 × 10^6 steps of batch 512, about a day on 2 CPU cores."
    steps = 2500 if small else 1_000_000
    text = describe("fig1", what, result, cost, scale)
    return _spec("fig1", "Grokking: flatness and collapse over training", text, scale, 0.5, steps, CORE_MEASURES)


def fig1_code(scale: Scale) -> StudySpec:
    """The same with the split and length of the published code."""
    small = scale == "small"
    what = (
        "Figure 1 at small scale; text and code differ in split and length only, so this is `fig1 --scale small`."
        if small
        else "Figure 1 as in the published code: 20 % of the pairs for training, 10^5 steps."
    )
    cost = "minutes on 2 CPU cores." if small else "3 × 10^5 steps of batch 512, about 3 hours on 2 CPU cores."
    result = "as fig1; the paper's text and code do not say which of them its figure shows."
    text = describe("fig1-code", what, result, cost, scale)
    steps = 2500 if small else 100_000
    return _spec("fig1-code", "Grokking, as in the published code", text, scale, 0.2, steps, CORE_MEASURES)


def fig20(scale: Scale) -> StudySpec:
    """Representativeness over grokking."""
    small = scale == "small"
    what = "Figure 20: representativeness of the training set over grokking, on the testbed of fig1."
    result = "representativeness improves with test accuracy and reaches about 0."
    cost = "minutes on 2 CPU cores." if small else "as fig1."
    text = describe("fig20", what, result, cost, scale)
    measures = (*CORE_MEASURES, *REPRESENTATIVENESS)
    steps = 2500 if small else 1_000_000
    return _spec("fig20", "Grokking: representativeness over training", text, scale, 0.5, steps, measures)


REPRESENTATIVENESS = ("representativeness", "feature_robustness")
