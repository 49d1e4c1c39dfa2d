"""What every number of the report means: measures from the trajectory's own metadata, outcomes in words."""

from grokscape.analysis.design import Rules
from grokscape.report.run import Run
from grokscape.report.wording import sentence

_DIRECTIONS = {
    "lower": "The literature connects lower values with generalisation.",
    "higher": "The literature connects higher values with generalisation.",
}
_SPLITS = {
    "train": "training samples",
    "test": "held-out samples, around their own class means",
    "cross": "held-out samples around the class means of the training samples",
    "params": "the parameters alone",
}


def entries(run: Run, rules: Rules) -> list[dict[str, str]]:
    """Glossary entries {"id", "title", "text"}: outcomes first, then each measure in the order of the columns."""
    return _outcomes(rules) + [_measure(run, measure, splits) for measure, splits in run.measures().items()]


def _outcomes(rules: Rules) -> list[dict[str, str]]:
    hold = f"and stays there for {rules.hold} evaluations in a row"
    return [
        {
            "id": "onset",
            "title": "Onset",
            "text": f"The first evaluation at or above a threshold that then holds: a run has memorised once its "
            "accuracy "
            f"on training samples reaches {rules.train_threshold:g} {hold}, and has generalised once its accuracy on "
            f"held-out samples reaches {rules.test_threshold:g} {hold}. A run that never gets there is censored at its "
            f"last evaluation: it stays in every "
            f"count and is never dropped.",
        },
        {
            "id": "median-onset",
            "title": "Median onset",
            "text": "The median step over the replicas of an arm, where a replica that never got there counts as later "
            "than "
            "all others. If half of them or more never did, there is no median.",
        },
        {
            "id": "delay",
            "title": "Delay",
            "text": "Steps from memorisation to generalisation, or to the end of the run if it never came.",
        },
        {
            "id": "final-accuracy",
            "title": "Final test accuracy",
            "text": f"Mean accuracy on held-out samples over a replica's last {rules.final_evaluations} evaluations; "
            "then the "
            f"median over replicas.",
        },
        {
            "id": "final-measure",
            "title": "Value at the end",
            "text": "A measure at a replica's last evaluation on training samples (or of the parameters); then the "
            "median "
            "over replicas.",
        },
    ]


def _measure(run: Run, measure: str, splits: list[str]) -> dict[str, str]:
    about = next((run.columns[f"{s}/{measure}"] for s in splits if f"{s}/{measure}" in run.columns), {})
    parts = [
        f"Column {', '.join(f'{s}/{measure}' for s in splits)}: taken on "
        f"{'; '.join(_SPLITS.get(s, s) for s in splits)}."
    ]
    if about.get("property"):
        parts.append(f"Property: {about['property']}.")
    if about.get("direction") in _DIRECTIONS:
        parts.append(_DIRECTIONS[about["direction"]])
    if about.get("unit"):
        parts.append(f"Unit or range: {about['unit']}.")
    parts.append(f"Source: {about['source']}." if about.get("source") else "This run folder records no source for it.")
    return {"id": measure, "title": sentence(run.measure_title(measure)), "text": " ".join(parts).replace("..", ".")}
