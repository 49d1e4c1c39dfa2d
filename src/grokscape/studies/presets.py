"""Studies that come with the project, by name."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from grokscape.interventions import Clamp, Intervention, Promote, Rescale, Suppress
from grokscape.measures import MEASURES
from grokscape.models import MLP, QuadraticMLP, Transformer
from grokscape.studies.paper import PAPER_PRESETS, SAME_RUNS
from grokscape.studies.paper_parts import BASELINE, Scale
from grokscape.studies.spec import DEFAULT_MEASURES, Arm, StudySpec
from grokscape.testbeds import Digits, ModularArithmetic
from grokscape.training import AdamW, Evaluation, OnsetRule


def _held(name: str, title: str, measure: str, level: float, strength: float = 0.1, start: int = 0) -> Arm:
    """A measure kept from going where training takes it: down, or up for the few that rise with collapse."""
    if MEASURES[measure].direction == "higher":
        sign, clamp = "≤", Clamp(measure, at_most=level, strength=strength, start=start)
    else:
        sign, clamp = "≥", Clamp(measure, at_least=level, strength=strength, start=start)
    return Arm(name=f"{name}-{level:g}", title=f"{title} {sign} {level:g}", interventions=(clamp,))


def _promoted(name: str, title: str, measure: str) -> Arm:
    return Arm(name=name, title=title, interventions=(Promote(measure, strength=1e-2),))


def _other(name: str, title: str, *interventions: Intervention) -> Arm:
    """Another hand: it presses on no measure of a property, and serves where it brings one to the same level."""
    return Arm(name=name, title=title, role="control", control="matched-level", interventions=interventions)


def _loss_held(level: float, strength: float = 0.1) -> Arm:
    return _other(f"loss-{level:g}", f"Loss ≥ {level:g}", Clamp("loss", at_least=level, strength=strength))


def _hands(levels: Mapping[str, Sequence[float]]) -> tuple[Arm, ...]:
    """Each property promoted, and held back at these levels by every hand there is for it."""
    flatness = {
        "kappa": ("κ", "relative_flatness"), "geometric": ("Geometric κ", "relative_flatness_geometric"),
        "surrogate": ("κ̄", "relative_flatness_bound"),
    }
    collapse = {
        "cdnv": ("CDNV", "cdnv"), "scatter": ("Scatter ratio", "nc1_ratio"), "rnc1": ("RNC1", "rnc1"),
        "nc1": ("NC1", "nc1"), "ildr": ("ILDR", "ildr"),
    }
    arms = []
    for title, hands in (("Flatness", flatness), ("Collapse", collapse)):
        _, measure = next(iter(hands.values()))
        arms.append(_promoted(f"{title.lower()}-promoted", f"{title} promoted", measure))
        arms += [_held(name, *hand, level) for name, hand in hands.items() for level in levels[name]]
    return tuple(arms)


def _with_norm_held(levels: Sequence[float]) -> tuple[Arm, ...]:
    """κ held back while the weights are kept from growing, which a penalty on κ makes them do; and the latter alone."""
    norm = Clamp("weight_norm", at_most=1.0, strength=10.0, relative_to="memorisation")
    title = "‖θ‖ ≤ its value at memorisation"
    both = tuple(
        Arm(name=f"kappa-{level:g}-norm", title=f"κ ≥ {level:g}, {title}",
            interventions=(Clamp("relative_flatness", at_least=level), norm))
        for level in levels
    )
    return (*both, _other("norm", title, norm))


def _controls(**faster: float) -> tuple[Arm, ...]:
    """Random labels, rescaled weights, and an optimiser that takes the delay away."""
    labels = {"title": "Random labels", "control": "random-labels", "testbed": {"random_labels": True}}
    weights = {"title": "Rescaled weights", "control": "rescaling", "interventions": (Rescale(2.0),)}
    delay = {"title": "Learning rate and decay doubled", "control": "no-delay", "optimizer": faster}
    named: dict[str, dict[str, Any]] = {"random-labels": labels, "rescaled": weights, "no-delay": delay}
    return tuple(Arm(name=name, role="control", **fields) for name, fields in named.items())


def _quick_testbed(*more: str, points: int = 45, refine: int = 25) -> dict[str, Any]:
    return {
        "testbed": ModularArithmetic(operation="x+y", p=31, train_fraction=0.5),
        "model": QuadraticMLP(width=128),
        "optimizer": AdamW(lr=1e-2, weight_decay=1.0, betas=(0.9, 0.98)),
        "seeds": 8,
        "steps": 1500,
        "evaluation": Evaluation(measures=(*DEFAULT_MEASURES, *more), points=points, refine=refine),
    }


def _quickstart() -> StudySpec:
    return StudySpec(
        name="quickstart",
        title="Does generalisation need flatness, or neural collapse?",
        question="Which of the two does a network need to generalise: flatness of the loss, or neural collapse?",
        description=(
            "Quadratic MLP on x + y mod 31, half of the 961 pairs for training, 8 arms × 8 paired seeds in one batched "
            "run; under 2 minutes on 2 CPU cores. Flatness and collapse are each promoted and held back at two doses; "
            "a last arm brings κ to the higher dose by another hand, the training loss. `necessity` has 25 more."
        ),
        arms=(
            BASELINE,
            _promoted("flatness-promoted", "Flatness promoted", "relative_flatness"),
            _held("flatness-held", "Flatness held back, κ", "relative_flatness", 3),
            _held("flatness-held", "Flatness held back, κ", "relative_flatness", 30),
            _promoted("collapse-promoted", "Collapse promoted", "cdnv"),
            _held("collapse-held", "Collapse held back, CDNV", "cdnv", 1.2),
            _held("collapse-held", "Collapse held back, CDNV", "cdnv", 1.6),
            _other("loss-held", "Training loss held ≥ 0.1", Clamp("loss", at_least=0.1, strength=1.0)),
        ),
        **_quick_testbed(points=32, refine=60),
    )


def _necessity() -> StudySpec:
    return StudySpec(
        name="necessity",
        title="Flatness and collapse, each moved by several hands",
        question="Is it the property that generalisation needs, or is it the hand that moved it?",
        description=(
            "The testbed of `quickstart` with 33 arms × 8 paired seeds. A clamp moves more than its measure, so each "
            "property is brought to the same levels in different ways: flatness through κ, through its geometric mean "
            "over samples, through κ with the weights kept from growing, through its surrogate κ̄ and through the "
            "training loss; collapse through CDNV, NC1, the scatter ratio, RNC1 and ILDR. Controls: "
            "random labels, rescaled weights, a faster optimiser. About seven minutes on 2 CPU cores."
        ),
        arms=(
            BASELINE,
            *_hands(
                {
                    "kappa": (3, 10, 30, 100), "geometric": (10, 30), "surrogate": (300, 900, 2500),
                    "cdnv": (1.2, 1.6, 2.0), "scatter": (2.5, 3.5), "rnc1": (0.42, 0.47),
                    "nc1": (0.7, 1.3), "ildr": (0.8, 0.7),
                }
            ),
            *_with_norm_held((30, 100)),
            _loss_held(0.002),
            _loss_held(0.02),
            _loss_held(0.1, strength=1.0),
            _loss_held(0.6, strength=3.0),
            *_controls(lr=2e-2, weight_decay=2.0),
        ),
        **_quick_testbed("relative_flatness_geometric"),
    )


def _necessity_digits() -> StudySpec:
    return StudySpec(
        name="necessity-digits",
        title="Flatness and collapse on real images, each moved by several hands",
        question="Does what holds for modular addition hold for pictures of digits?",
        description=(
            "The design of `necessity` on 200 of scikit-learn's digits: a ReLU MLP from an eight times too large "
            "initialisation memorises them by step 100 with three quarters of the others right, and generalises 500 "
            "steps later (Liu et al. 2023). It ends at 94 %, so generalised means 92 % here. 27 arms × 8 paired seeds; "
            "about six minutes on 2 CPU cores."
        ),
        arms=(
            BASELINE,
            *_hands(
                {
                    "kappa": (30, 100, 300, 1000), "geometric": (60, 600), "surrogate": (3000, 10000),
                    "cdnv": (0.5, 0.65, 0.8), "scatter": (1.0, 1.4), "rnc1": (0.12, 0.15),
                    "nc1": (0.6, 0.75), "ildr": (1.6, 1.3),
                }
            ),
            _loss_held(0.02),
            _loss_held(0.1, strength=1.0),
            *_controls(lr=2e-3, weight_decay=2.0),
        ),
        **_digits_testbed("relative_flatness_geometric"),
    )


def _digits_testbed(*more: str) -> dict[str, Any]:
    return {
        "testbed": Digits(train_samples=200),
        "model": MLP(widths=(128, 128), init_scale=8.0),
        "optimizer": AdamW(lr=1e-3, weight_decay=1.0),
        "seeds": 8,
        "steps": 1500,
        "onset": OnsetRule(test_threshold=0.92),
        "evaluation": Evaluation(measures=(*DEFAULT_MEASURES, *more), points=35, refine=50),
    }


def _necessity_layers() -> StudySpec:
    head, hidden = "relative_flatness", ("relative_flatness@layers.0", "relative_flatness@layers.1")

    def held(name: str, title: str, share: float, *measures: str) -> Arm:
        """κ of some layers kept at or above a share of what it is at memorisation."""
        clamps = tuple(Clamp(measure, at_least=share, relative_to="memorisation") for measure in measures)
        title = f"κ of {title} ≥ {share:g} × at memorisation"
        return Arm(name=f"{name}-{share:g}", title=title, interventions=clamps)

    uncertain = Clamp("predictive_entropy", at_least=1.0, strength=3.0)
    large = {share: Clamp("weight_norm", at_least=share, strength=1.0, relative_to="memorisation")
             for share in (0.9, 1.1)}
    first, second = (Clamp(measure, at_least=level) for measure, level in zip(hidden, (500, 1000)))
    return StudySpec(
        name="necessity-layers",
        title="Flatness of the head, and of the hidden layers",
        question="In which layers does a network need flatness to generalise?",
        description=(
            "The testbed of `necessity-digits`. κ of the head, or of both hidden layers, is held at a tenth "
            "or a half of what it is at memorisation. Other arms leave hidden layers sharp by other hands: held "
            "training loss, uncertain predictions, the same with large weights, small margins; or hold their κ where "
            "predictions are uncertain. 12 arms × 8 paired seeds; about ten minutes on 2 CPU cores."
        ),
        arms=(
            BASELINE,
            *(held("head", "the head", share, head) for share in (0.1, 0.5)),
            *(held("hidden", "hidden layers", share, *hidden) for share in (0.1, 0.5)),
            _loss_held(0.1, strength=1.0),
            _other("uncertain", "Entropy ≥ 1", uncertain),
            *(_other(f"uncertain-norm-{share:g}", f"Entropy ≥ 1, ‖θ‖ ≥ {share:g} × at memorisation", uncertain, clamp)
              for share, clamp in large.items()),
            Arm(name="uncertain-hidden", title="κ of hidden layers ≥ 500, 1000, entropy ≥ 1, ‖θ‖ ≥ 0.9",
                interventions=(first, second, uncertain, large[0.9])),
            Arm(name="uncertain-second", title="κ of the second layer ≥ 2000, entropy ≥ 1",
                interventions=(Clamp(hidden[1], at_least=2000), uncertain)),
            _other("margin", "Margin suppressed", Suppress("margin", strength=0.05)),
        ),
        **_digits_testbed("predictive_entropy", *hidden, *(name.replace("@", "_stderr@") for name in hidden))
        | {"steps": 2500},
    )


def _grok_transformer() -> StudySpec:
    return StudySpec(
        name="grok-transformer",
        title="Grokking x + y mod 97: flatness and collapse over training",
        question="When do relative flatness and neural collapse arrive: with memorisation, or with generalisation?",
        description=(
            "Figure 1 of Han et al. 2025 at laptop scale: 2-layer, 4-head decoder of width 128 on x + y mod 97, half "
            "of the pairs for training, AdamW with lr 1e-3 and weight decay 1, 3 seeds; about 3 minutes on 2 cores."
        ),
        testbed=ModularArithmetic(operation="x+y", p=97, train_fraction=0.5),
        model=Transformer(layers=2, heads=4, width=128),
        optimizer=AdamW(lr=1e-3, weight_decay=1.0, betas=(0.9, 0.98), warmup=10),
        arms=(BASELINE,),
        seeds=3,
        steps=3000,
        batch_size=512,
        evaluation=Evaluation(measures=DEFAULT_MEASURES, points=32, refine=100, max_samples=3072),
    )


def _necessity_transformer() -> StudySpec:
    return _grok_transformer().model_copy(update={
        "name": "necessity-transformer",
        "title": "Flatness and collapse in a transformer, each held where it was at memorisation",
        "question": "Does the network of the paper need either property to generalise?",
        "description": (
            "The testbed of `grok-transformer`. When its networks have memorised, κ is about 50 and CDNV about 0.6: "
            "flatness is held near there by κ and κ̄, collapse by CDNV, the scatter ratio, RNC1 (0 at first, hence from "
            "step 200 on), NC1 and ILDR, and the training loss at 0.1 as a control. 10 arms × 8 paired seeds, 3000 "
            "steps; about an hour and a half on 2 cores with `--launcher processes`."
        ),
        "arms": (
            BASELINE,
            _held("kappa", "κ", "relative_flatness", 30, strength=1.0),
            _held("kappa", "κ", "relative_flatness", 60, strength=1.0),
            _held("surrogate", "κ̄", "relative_flatness_bound", 5000, strength=1.0),
            _held("cdnv", "CDNV", "cdnv", 0.6),
            _held("scatter", "Scatter ratio", "nc1_ratio", 1.2),
            _held("rnc1", "RNC1", "rnc1", 0.55, strength=1.0, start=200),
            _held("nc1", "NC1", "nc1", 6),
            _held("ildr", "ILDR", "ildr", 1.3, strength=1.0),
            _loss_held(0.1, strength=1.0),
        ),
        "seeds": 8,
        "evaluation": Evaluation(measures=DEFAULT_MEASURES, points=40, every=100, refine=50, max_samples=1024),
    })


PRESETS: dict[str, Callable[[], StudySpec]] = {
    "quickstart": _quickstart,
    "necessity": _necessity,
    "necessity-digits": _necessity_digits,
    "necessity-layers": _necessity_layers,
    "grok-transformer": _grok_transformer,
    "necessity-transformer": _necessity_transformer,
}


def presets() -> list[str]:
    """Names of all presets."""
    return [*PRESETS, *PAPER_PRESETS]


def preset(name: str, scale: Scale = "paper") -> StudySpec:
    """The preset's specification.

    Args:
        name: see `presets`; figures that show the runs of another figure give that one's.
        scale: for experiments of the paper, "paper" for its settings and data, "small" for the same design on data that
            ships or is made, in minutes.

    Raises:
        ValueError: there is no such preset (the message lists the near ones), or it has one scale only.
    """
    name = SAME_RUNS.get(name, name)
    if name in PAPER_PRESETS:
        return PAPER_PRESETS[name](scale)
    if name not in PRESETS:
        near = difflib.get_close_matches(name, presets(), n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(presets())}."
        raise ValueError(f"no preset is called {name!r}; {hint} `grokscape presets` describes all. "
                         f"A specification of your own is a path that ends in .json, such as DIR/spec.json")
    if scale != "paper":
        raise ValueError(f"{name!r} has one scale only; leave `--scale {scale}` out")
    return PRESETS[name]()
