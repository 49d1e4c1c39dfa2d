"""The paper's experiments on grokking: figures 1 and 20."""

from grokscape.models import Transformer
from grokscape.studies.paper_parts import BASELINE, CORE_MEASURES, Scale, describe
from grokscape.studies.spec import StudySpec
from grokscape.testbeds import ModularArithmetic
from grokscape.training import AdamW, Evaluation

_QUESTION = "When do relative flatness and neural collapse arrive: with memorisation, or with generalisation?"


def _spec(
    name: str,
    title: str,
    description: str,
    scale: Scale,
    fraction: float = 0.5,
    steps: int = 1_000_000,
    measures: tuple[str, ...] = CORE_MEASURES,
) -> StudySpec:
    """Fraction and steps are those of the paper's scale; at small scale all three studies train alike."""
    small = scale == "small"
    return StudySpec(
        name=name,
        title=title,
        question=_QUESTION,
        description=description,
        testbed=ModularArithmetic(operation="x+y", p=97, train_fraction=0.5 if small else fraction),
        model=Transformer(layers=2, heads=4, width=128),
        optimizer=AdamW(lr=1e-3 if small else 1e-4, weight_decay=1.0, betas=(0.9, 0.98), warmup=10),
        arms=(BASELINE,),
        seeds=3,
        steps=2500 if small else steps,
        batch_size=512,
        evaluation=Evaluation(measures=measures, points=40 if small else 60, refine=None if small else 250),
    )


def fig1(scale: Scale) -> StudySpec:
    """Flatness and collapse over grokking, with the half and half split of the paper's text."""
    what = {
        "small": "Figure 1 with ten times the learning rate and 2500 steps: x + y mod 97, half of the pairs for "
        "training.",
        "paper": "Figure 1 as in the text: x + y mod 97, 2-layer, 4-head decoder of width 128, half of the pairs for "
        "training, AdamW with lr 1e-4 and weight decay 1, 10^6 steps.",
    }
    result = (
        "CDNV falls from early on, before memorisation ends; κ̄ rises with train accuracy and falls when "
        "generalisation begins."
    )
    cost = (
        "3 × 10^6 steps of batch 512, about 14 hours on 2 CPU cores; our networks stand still long before "
        "(docs/paper.md)."
    )
    text = describe("fig1", what[scale], result, cost, scale)
    return _spec("fig1", "Grokking: flatness and collapse over training", text, scale)


def fig1_code(scale: Scale) -> StudySpec:
    """The same with the split and length of the published code."""
    what = {
        "small": "Figure 1 at small scale; text and code differ in split and length only, so this is "
        "`fig1 --scale small`.",
        "paper": "Figure 1 as in the published code: 20 % of the pairs for training, 10^5 steps.",
    }
    result = "as fig1; the paper's text and code do not say which of them its figure shows."
    cost = (
        "3 × 10^5 steps of batch 512, about an hour and a half on 2 CPU cores; our networks do not generalise "
        "in them (docs/paper.md)."
    )
    text = describe("fig1-code", what[scale], result, cost, scale)
    return _spec("fig1-code", "Grokking, as in the published code", text, scale, fraction=0.2, steps=100_000)


def fig20(scale: Scale) -> StudySpec:
    """Representativeness over grokking."""
    what = "Figure 20: representativeness of the training set over grokking, on the testbed of fig1."
    result = "representativeness improves with test accuracy and reaches about 0."
    text = describe("fig20", what, result, "as fig1.", scale)
    measures = (*CORE_MEASURES, "representativeness", "feature_robustness")
    return _spec("fig20", "Grokking: representativeness over training", text, scale, measures=measures)
