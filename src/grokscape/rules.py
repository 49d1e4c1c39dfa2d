"""The rules that turn numbers into verdicts: when a network counts as what, and what is too small to matter.

A study fixes them before it runs, and the analysis reads them from its `spec.json`.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, ValidationError

from grokscape.settings import Settings, wrong

Share = Annotated[float, Field(gt=0, le=1)]
Factor = Annotated[float, Field(ge=1)]


class OnsetRule(Settings):
    """When a network counts as having memorised and as having generalised.

    Attributes:
        train_threshold: train accuracy at or above which the training set is memorised.
        test_threshold: test accuracy at or above which the network generalises.
        hold: number of successive evaluations over which the accuracy must stay there.
    """

    train_threshold: Share = 0.99
    test_threshold: Share = 0.95
    hold: Annotated[int, Field(ge=1)] = 3


class VerdictRule(Settings):
    """The rules that turn numbers into verdicts, fixed before the run; see docs/verdicts.md.

    Attributes:
        accuracy_margin: difference of final test accuracy that is too small to matter.
        delay_ratio_margin: factor on the delay (arm over baseline) that is too small to matter.
        alpha: level of tests after correction; intervals have confidence 1 − alpha.
        held_fraction: share of evaluations, and of seeds, for which a manipulation must have done its work.
        held_tolerance: share by which a level may miss its goal and still count as held.
        memorised_fraction: share of an arm's seeds whose memorisation must be intact.
        match_factor: two levels of a measure within this factor are the same level; one further off is another.
        beyond_factor: an intact hand contradicts one that harms if its level lies beyond that one's or falls short by
            this factor at most.
        moved_factor: a measure that changes by less than this factor did not move.
        reached_fraction: share of the baseline's way (log scale) from memorisation to its level at generalisation that
            a run must have gone to have the property as the baseline had it.
        blocked_fraction: share of the baseline's way (log scale) from memorisation to its settled level that the
            strongest arm must take back before "not necessary" can be said.
        minimum_seeds: pairs of seeds below which no verdict is given.
        final_evaluations: evaluations at the end that make the final accuracy.
        rescaling_tolerance: relative change of κ that a rescaling control may show.
        bootstrap: resamples behind an interval.
        primary: property → measure whose verdict stands for it; where left out, the one that most arms manipulate.
    """

    accuracy_margin: Annotated[float, Field(gt=0, lt=1)] = 0.05
    delay_ratio_margin: Annotated[float, Field(gt=1)] = 2.0
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    held_fraction: Share = 0.8
    held_tolerance: Annotated[float, Field(ge=0, lt=1)] = 0.2
    memorised_fraction: Share = 0.75
    match_factor: Factor = 2.0
    beyond_factor: Factor = 1.1
    moved_factor: Factor = 1.25
    reached_fraction: Share = 0.95
    blocked_fraction: Annotated[float, Field(ge=0, le=1)] = 0.5
    minimum_seeds: Annotated[int, Field(ge=2)] = 5
    final_evaluations: Annotated[int, Field(ge=1)] = 5
    rescaling_tolerance: Annotated[float, Field(gt=0)] = 0.05
    bootstrap: Annotated[int, Field(ge=200, le=100_000)] = 4000
    primary: dict[str, str] = Field(default_factory=dict)


class Rules(OnsetRule, VerdictRule):
    """All of them, as the analysis reads them."""

    @classmethod
    def of(cls, spec: Mapping[str, Any]) -> "Rules":
        """The rules of a spec, with defaults for what it leaves out; entries that are no rules may be anything.

        Raises:
            ValueError: a rule that no study can have, such as a threshold above 1.
        """
        given: dict[str, Any] = {}
        for part in ("onset", "verdict"):
            written = spec.get(part) or {}
            if not isinstance(written, Mapping):
                raise ValueError(f"expected rules by their names as {part} in spec.json, got {written!r:.40}")
            given |= {name: value for name, value in written.items() if value is not None}
        try:
            return cls(**{name: value for name, value in given.items() if name in cls.model_fields})
        except ValidationError as error:
            raise ValueError(f"{wrong(error)}; put it right in spec.json") from None
