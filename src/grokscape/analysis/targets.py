"""The measures that a study's arms were made to move, each of which is judged."""

from dataclasses import dataclass

from grokscape.analysis.record import Record


@dataclass(frozen=True)
class Target:
    """A measure that manipulation arms block or promote.

    Attributes:
        property_name: its property.
        measure: its name.
        column: the trajectory's column.
        primary: whether it stands for its property.
        asked: whether a verdict on it is due: not if its property is moved only beside one that other arms move alone.
    """

    property_name: str
    measure: str
    column: str
    primary: bool
    asked: bool

    @property
    def id(self) -> str:
        """Name of its findings: the property alone for the measure that stands for it."""
        return self.property_name if self.primary else f"{self.property_name}/{self.measure}"


def targets(record: Record, *goals: str) -> list[Target]:
    """The measures that manipulation arms block or promote, one of each property being the primary."""
    count: dict[tuple[str, str, str], int] = {}
    arms = [arm for arm in record.arms if arm.role == "manipulation"]
    alone = {name for arm in arms if len(arm.properties) == 1 for name in arm.properties}
    asked = {name for arm in arms for name in arm.properties & alone or arm.properties}
    for arm in arms:
        for aim in arm.aims:
            if aim.goal in goals:
                key = (aim.property, aim.measure, aim.column)
                count[key] = count.get(key, 0) + 1
    primary: dict[str, str] = dict(record.rules.primary)
    for prop, measure, _ in sorted(count, key=lambda key: -count[key]):
        primary.setdefault(prop, measure)
    return [Target(prop, measure, column, primary[prop] == measure, prop in asked) for prop, measure, column in count]
