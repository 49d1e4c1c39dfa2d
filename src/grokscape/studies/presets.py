"""Studies that come with the project, by name."""

import difflib
from collections.abc import Callable

from grokscape.interventions import Clamp, Promote
from grokscape.models import QuadraticMLP, Transformer
from grokscape.studies.spec import DEFAULT_MEASURES, Arm, StudySpec
from grokscape.testbeds import ModularArithmetic
from grokscape.training import AdamW, Evaluation


def _quickstart() -> StudySpec:
    return StudySpec(
        name="quickstart",
        title="Does generalisation need flatness, or neural collapse?",
        question="Which of the two does a network need in order to generalise: flatness of the loss, or neural collapse?",
        description=(
            "Quadratic MLP on x + y mod 31, half of the 961 pairs for training, 8 arms × 8 paired seeds in one batched "
            "run. Flatness and collapse are each promoted and held back at two doses; a last arm holds the training loss "
            "up, as a control."
        ),
        testbed=ModularArithmetic(operation="x+y", p=31, train_fraction=0.5),
        model=QuadraticMLP(width=128),
        optimizer=AdamW(lr=1e-2, weight_decay=1.0, betas=(0.9, 0.98)),
        arms=(
            Arm(name="baseline", title="Baseline", role="baseline"),
            Arm(
                name="flatness-promoted",
                title="Flatness promoted",
                interventions=(Promote("relative_flatness", strength=1e-2),),
            ),
            Arm(
                name="flatness-held-3",
                title="Flatness held back, κ ≥ 3",
                interventions=(Clamp("relative_flatness", at_least=3.0),),
            ),
            Arm(
                name="flatness-held-30",
                title="Flatness held back, κ ≥ 30",
                interventions=(Clamp("relative_flatness", at_least=30.0),),
            ),
            Arm(name="collapse-promoted", title="Collapse promoted", interventions=(Promote("cdnv", strength=1e-2),)),
            Arm(
                name="collapse-held-1.2",
                title="Collapse held back, CDNV ≥ 1.2",
                interventions=(Clamp("cdnv", at_least=1.2),),
            ),
            Arm(
                name="collapse-held-1.6",
                title="Collapse held back, CDNV ≥ 1.6",
                interventions=(Clamp("cdnv", at_least=1.6),),
            ),
            Arm(
                name="loss-held",
                title="Training loss held up",
                role="control",
                control="matched-level",
                interventions=(Clamp("loss", at_least=2e-2),),
            ),
        ),
        seeds=8,
        steps=1500,
        evaluation=Evaluation(measures=DEFAULT_MEASURES, points=90, refine=10),
    )


def _grok_transformer() -> StudySpec:
    return StudySpec(
        name="grok-transformer",
        title="Grokking x + y mod 97: flatness and collapse over training",
        question="When do relative flatness and neural collapse arrive: with memorisation, or with generalisation?",
        description=(
            "Figure 1 of Han et al. 2025 at laptop scale: 2-layer, 4-head decoder of width 128 on x + y mod 97, half of "
            "the pairs for training, AdamW with lr 1e-3 and weight decay 1, 3 seeds."
        ),
        testbed=ModularArithmetic(operation="x+y", p=97, train_fraction=0.5),
        model=Transformer(layers=2, heads=4, width=128),
        optimizer=AdamW(lr=1e-3, weight_decay=1.0, betas=(0.9, 0.98), warmup=10),
        arms=(Arm(name="baseline", title="Baseline", role="baseline"),),
        seeds=3,
        steps=3000,
        batch_size=512,
        evaluation=Evaluation(measures=DEFAULT_MEASURES, points=90, refine=25),
    )


PRESETS: dict[str, Callable[[], StudySpec]] = {
    "quickstart": _quickstart,
    "grok-transformer": _grok_transformer,
}


def presets() -> list[str]:
    """Names of all presets."""
    return list(PRESETS)


def preset(name: str) -> StudySpec:
    """The preset's specification.

    Raises:
        ValueError: there is no such preset; the message lists the near ones.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(PRESETS)}"
        raise ValueError(f"no preset is called {name!r}; {hint} `grokscape presets` describes all")
    return PRESETS[name]()
