"""The specification of a study: testbed, model, optimiser, arms, seeds, what is measured, and the rules of the verdict.

It is written down before the run, frozen, and goes to JSON and back unchanged.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from grokscape.interventions import Intervention, Step, describe
from grokscape.models import Model
from grokscape.rules import OnsetRule, VerdictRule
from grokscape.settings import Settings
from grokscape.testbeds import Task
from grokscape.training import Evaluation, Optimizer, Precision
from grokscape.training.columns import column_table
from grokscape.training.levers import check_together

Seed = Annotated[int, Field(ge=0, le=2**62)]  # what PyTorch's generators and Parquet's integers hold
Name = Annotated[str, Field(min_length=1, max_length=80)]
DEFAULT_MEASURES = (
    "relative_flatness",
    "relative_flatness_bound",
    "relative_flatness_per_loss",
    "relative_flatness_participation",
    "cdnv",
    "nc1",
    "nc1_ratio",
    "rnc1",
    "nc2_equinorm",
    "nc2_equiangular",
    "nc2_etf",
    "nc3",
    "nc4",
    "ildr",
    "margin",
    "weight_norm",
    "head_norm",
    "collapse_radius",
    "collapse_scale",
    "mean_offset",
)


class Arm(Settings):
    """One condition of a study: every seed is trained once under it.

    Attributes:
        name: short, unique within the study.
        title: how figures and tables call it.
        role: "baseline", "manipulation" (of a property), or "control".
        control: what a control shows: "matched-level", "random-labels", "rescaling", "no-delay" or
            "no-grokking".
        interventions: what is done to the training.
        optimizer: settings that differ from the study's, such as {"lr": 0.02}.
        testbed: settings that differ from the study's, such as {"random_labels": true}.
    """

    name: Name
    title: str = ""
    role: Literal["baseline", "manipulation", "control"] = "manipulation"
    control: Literal["matched-level", "random-labels", "rescaling", "no-delay", "no-grokking"] | None = None
    interventions: tuple[Intervention, ...] = ()
    optimizer: dict[str, Any] = Field(default_factory=dict)
    testbed: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _go_together(self) -> "Arm":
        if self.control is not None and self.role != "control":
            raise ValueError(
                f"control={self.control!r} says what a control shows, but this arm's role is {self.role!r}; "
                f"give it role='control', or leave control out"
            )
        check_together(self.interventions)
        return self

    @property
    def label(self) -> str:
        """The title, or the name where there is none."""
        return self.title or self.name

    def __str__(self) -> str:
        changes = {**self.optimizer, **self.testbed}
        extra = "".join(f"; {key} {value}" for key, value in changes.items())
        return f"{self.label}: {describe(self.interventions)}{extra}"


class StudySpec(Settings):
    """A registered experiment: arms × seeds, paired.

    Attributes:
        name: short; the run folder is called so unless another place is named.
        title, question: what figures call it, and what it asks.
        description: cost, source, expected outcome; for `grokscape presets`.
        testbed, model, optimizer: as in their own modules.
        arms: the conditions; the first with role "baseline" is what the others are compared with.
        seeds: number of paired seeds.
        first_seed: initialisation seed of the first pair; the split seed of pair k is `first_split_seed` + k.
        init_seeds: initialisation seeds of the first pairs, in place of `first_seed` + k.
        first_split_seed: split seed of the first pair.
        same_split: whether all pairs share one split.
        steps: training steps.
        batch_size: samples a step, None for the full training set; those of an epoch that fill no batch are left out.
        evaluation: what is measured, and when.
        onset: thresholds of memorisation and generalisation.
        verdict: rules of the verdict.
        precision, early_stop, compile: of the engine.
    """

    name: Name
    title: str = ""
    question: str = ""
    description: str = ""
    testbed: Task
    model: Model
    optimizer: Optimizer
    arms: Annotated[tuple[Arm, ...], Field(min_length=1)]
    seeds: Annotated[int, Field(ge=1, le=100_000)] = 8
    first_seed: Seed = 0
    init_seeds: tuple[Seed, ...] = ()
    first_split_seed: Seed = 1000
    same_split: bool = False
    steps: Annotated[Step, Field(ge=1)]
    batch_size: Annotated[int, Field(ge=1)] | None = None
    evaluation: Evaluation = Evaluation(measures=DEFAULT_MEASURES)
    onset: OnsetRule = OnsetRule()
    verdict: VerdictRule = VerdictRule()
    precision: Precision = "float32"
    compile: bool = False
    early_stop: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> "StudySpec":
        names = [arm.name for arm in self.arms]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"expected arms with different names, got {', '.join(twice)} more than once")
        baselines = [arm.name for arm in self.arms if arm.role == "baseline"]
        if len(baselines) != 1:
            raise ValueError(f"expected exactly one arm with role 'baseline', got {len(baselines)}")
        if {"/", "\\"} & set(self.name) or self.name in (".", ".."):
            raise ValueError(f"expected a name that a folder can have, got {self.name!r}")
        columns = column_table(self.evaluation.measures).values()
        for prop, measure in self.verdict.primary.items():
            known = sorted({column["measure"] for column in columns if column["property"] == prop})
            if measure not in known:
                raise ValueError(
                    f"expected verdict.primary to name a measured measure of its property, got {prop}: {measure}; "
                    f"of {prop} there are {', '.join(known) or 'none'}"
                )
        if self.init_seeds and len({self.pair(k) for k in range(self.seeds)}) < self.seeds:
            raise ValueError(
                "expected pairs of initialisation and split seed that differ, got one twice; "
                "change init_seeds, or first_seed for those that follow them"
            )
        for arm in self.arms:
            arm_optimizer(self, arm)
            arm_testbed(self, arm)
        return self

    @property
    def replicas(self) -> int:
        """Number of training runs: arms × seeds."""
        return len(self.arms) * self.seeds

    def pair(self, k: int) -> tuple[int, int]:
        """Initialisation and split seed of pair k."""
        init_seed = self.init_seeds[k] if k < len(self.init_seeds) else self.first_seed + k
        return init_seed, self.first_split_seed + (0 if self.same_split else k)


def _overridden(adapter: TypeAdapter[Any], settings: Settings, arm: Arm, place: str) -> Any:
    changes = getattr(arm, place)
    if not changes:
        return settings
    try:
        return adapter.validate_python({**dict(settings), **changes})
    except ValidationError as error:
        details = [{**entry, "loc": (arm.name, place, *entry["loc"][1:])} for entry in error.errors()]
        raise ValidationError.from_exception_data(arm.name, details) from None


def arm_optimizer(spec: StudySpec, arm: Arm) -> Any:
    """The study's optimiser with the arm's changes."""
    return _overridden(TypeAdapter(Optimizer), spec.optimizer, arm, "optimizer")


def arm_testbed(spec: StudySpec, arm: Arm) -> Any:
    """The study's testbed with the arm's changes."""
    return _overridden(TypeAdapter(Task), spec.testbed, arm, "testbed")
