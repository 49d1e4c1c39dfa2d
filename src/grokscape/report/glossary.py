"""What every number of the report means: measures from the trajectory's own metadata, outcomes in words."""

from grokscape.plural import counted
from grokscape.report.run import Run
from grokscape.report.wording import sentence
from grokscape.rules import Rules
from grokscape.symbols import PLACES

_DIRECTIONS = {
    "lower": "The literature connects lower values with generalisation.",
    "higher": "The literature connects higher values with generalisation.",
}
_ONSET = """The first evaluation at or above a threshold that then holds for {hold} in a row. A run has
memorised once its accuracy on training samples reaches {train:g}, and has generalised once its accuracy
on held-out samples reaches {test:g}. A run that never gets there is censored at its last evaluation: it
stays in every count and is never dropped."""
_MEDIAN = """The step by which half of an arm's replicas had got there (Kaplan–Meier). If fewer than half ever did,
there is no median."""
_DELAY = "Steps from memorisation to generalisation, or to the end of the run if it never came."
_FINAL = """Median accuracy on held-out samples over a replica's last {final}; then the mean over
replicas, with an interval of confidence {confidence:.0%}."""
_END = """A measure at a replica's last evaluation on training samples (or of the parameters); then the median
over replicas."""
_HELD = """Whether an arm did what it was meant to do. Held: the measure met its goal at {held:.0%} of the
evaluations after memorisation, within {tolerance:.0%}, in {held:.0%} of the seeds. Idle: the baseline
meets the same goal by itself. The level is the median over seeds at which the measure settled. An arm
that did not hold, or in which memorisation was lost, says nothing about its property."""
_NECESSARY = """A property is called not necessary if it was held back and generalisation stayed equivalent to the
baseline's within margins that were fixed before the run; consistent with necessary if holding it back
by two different hands, at the same level, made generalisation fail or come later by more than the
margins; else inconclusive. No finite experiment proves necessity."""


def entries(run: Run, rules: Rules) -> list[dict[str, str]]:
    """Glossary entries {"id", "title", "text"}: outcomes first, then each measure in the order of the columns."""
    return _outcomes(rules) + [_measure(run, measure, splits) for measure, splits in run.measures().items()]


def _outcomes(rules: Rules) -> list[dict[str, str]]:
    hold = counted(rules.hold, "evaluation")
    onset = _ONSET.format(hold=hold, train=rules.train_threshold, test=rules.test_threshold)
    final = _FINAL.format(final=counted(rules.final_evaluations, "evaluation"), confidence=1 - rules.alpha)
    held = _HELD.format(held=rules.held_fraction, tolerance=rules.held_tolerance)
    texts = [
        ("necessary", "Necessary", _NECESSARY),
        ("onset", "Onset", onset),
        ("median-onset", "Median onset", _MEDIAN),
        ("delay", "Delay", _DELAY),
        ("final-accuracy", "Final test accuracy", final),
        ("held", "Held", held),
        ("at-the-end", "At the end", _END),
    ]
    return [{"id": id_, "title": title, "text": " ".join(text.split())} for id_, title, text in texts]


def _measure(run: Run, measure: str, splits: list[str]) -> dict[str, str]:
    about = next((run.columns[f"{s}/{measure}"] for s in splits if f"{s}/{measure}" in run.columns), {})
    columns, places = ", ".join(f"{s}/{measure}" for s in splits), "; ".join(PLACES.get(s, s) for s in splits)
    parts = [f"Column {columns}: taken on {places}."]
    if about.get("property"):
        parts.append(f"Property: {about['property']}.")
    if about.get("direction") in _DIRECTIONS:
        parts.append(_DIRECTIONS[about["direction"]])
    if about.get("unit"):
        parts.append(f"Unit or range: {about['unit']}.")
    known = about.get("source") not in (None, "", "–")
    parts.append(f"Source: {about['source']}." if known else "A textbook quantity; this run folder names no source.")
    return {"id": measure, "title": sentence(run.measure_title(measure)), "text": " ".join(parts).replace("..", ".")}
