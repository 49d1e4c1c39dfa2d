"""The arms of a study as people read them: family, colour, and what was done, in words."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from grokscape.report.palette import DASHES, FAMILY_OF_PROPERTY, FAMILY_TITLES, Colour, Dash, Family, arm_style, ramp

Style = tuple[Colour, Dash]


@dataclass(frozen=True)
class Arm:
    """An arm of the study and how it is drawn everywhere.

    Attributes:
        name: its value in the column `arm`.
        title: what people read.
        role: "baseline", "manipulation" or "control".
        family: which property it moves, or "control".
        colour: its colour in every figure.
        dash: its dash in every figure.
        done: what was done to the training, in words; "" for nothing.
    """

    name: str
    title: str
    role: str
    family: Family
    colour: Colour
    dash: Dash
    done: str = ""


def arms_of(
    spec: Mapping[str, Any], present: Iterable[str], properties: Mapping[str, str], titles: Mapping[str, str]
) -> tuple[Arm, ...]:
    """Arms in the order of legends and tables: baseline, flatness, collapse, others, controls.

    Args:
        spec: the study.
        present: names of arms that the trajectory holds; arms without a place in the spec come last in their family.
        properties: measure → its property.
        titles: measure → what people read.
    """
    listed = {str(arm.get("name")): arm for arm in spec.get("arms") or [] if isinstance(arm, Mapping)}
    for name in present:
        listed.setdefault(name, {"name": name})
    families = {name: _family(name, arm, properties) for name, arm in listed.items()}
    arms = []
    for family in FAMILY_TITLES:
        members = {name: listed[name] for name in listed if families[name] == family}
        for name, (colour, dash) in _styles(family, members).items():
            arm = listed[name]
            title, role = str(arm.get("title") or name), str(arm.get("role") or "")
            arms.append(Arm(name, title, role, family, colour, dash, in_words(arm, titles)))
    return tuple(arms)


def _styles(family: Family, members: Mapping[str, Mapping[str, Any]]) -> dict[str, Style]:
    """Colour and dash of a family's arms; no two alike, if need be by a shade that no dose has."""
    hands: dict[str, list[str]] = {}
    for name, arm in members.items():
        hands.setdefault(_hand(name, arm), []).append(name)
    found: dict[str, Style] = {}
    for hand, names in enumerate(hands.values()):
        for dose, name in enumerate(sorted(names, key=lambda name: _dose(members[name]))):
            style = arm_style(family, hand, dose, len(names))
            found[name] = _unlike(style, family, found) if style in found.values() else style
    return {name: found[name] for name in members}


def _unlike(style: Style, family: Family, taken: Mapping[str, Style]) -> Style:
    """A style of the family that no arm has yet; after 54 arms they repeat."""
    for place in range(9):
        for dash in DASHES:
            other = (ramp(family, place / 8), dash)
            if other not in taken.values():
                return other
    return style


def _hand(name: str, arm: Mapping[str, Any]) -> str:
    """What takes hold of training: kinds and measures, without their levels; else the settings that differ."""
    hands = [f"{item.get('kind')} {item.get('measure', '')}" for item in _interventions(arm)]
    hands += [key for place in ("optimizer", "testbed", "model") for key in arm.get(place) or {}]
    return " + ".join(hands) or name


def _dose(arm: Mapping[str, Any]) -> tuple[float, ...]:
    """How hard an arm takes hold, by levels of clamps and strengths of penalties; puts the doses of a hand in order."""
    sizes = []
    for item in _interventions(arm):
        low, high = item.get("at_least"), item.get("at_most") if item.get("kind") == "clamp" else None
        sizes.append(float(low if low is not None else -high if high is not None else item.get("strength") or 0.0))
    return tuple(sizes)


def _interventions(arm: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [item for item in arm.get("interventions") or [] if isinstance(item, Mapping)]


def _family(name: str, arm: Mapping[str, Any], properties: Mapping[str, str]) -> Family:
    role = arm.get("role")
    if role == "control":
        return "control"
    if role == "baseline" or (role is None and not _interventions(arm) and name == "baseline"):
        return "baseline"
    for intervention in _interventions(arm):
        property_ = properties.get(str(intervention.get("measure", "")).rpartition("/")[2], "")
        if property_ in FAMILY_OF_PROPERTY:
            return FAMILY_OF_PROPERTY[property_]
    return "other"


def in_words(arm: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    """What an arm does differently: its interventions, then settings that differ from the study's."""
    parts = [_intervention(item, titles) for item in _interventions(arm)]
    for place in ("optimizer", "testbed", "model"):
        parts += [f"{key.replace('_', ' ')} {_value(value)}" for key, value in (arm.get(place) or {}).items()]
    return "; ".join(parts)


def _intervention(item: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    kind, strength = item.get("kind"), item.get("strength")
    measure = str(item.get("measure") or "")
    title = titles.get(measure.rpartition("/")[2], measure.replace("_", " "))
    by = f" (strength {_value(strength)})" if strength is not None else ""
    if kind == "clamp":
        levels = [f"{sign} {_value(item[key])}" for key, sign in (("at_least", "≥"), ("at_most", "≤")) if item.get(key)]
        unit = f" × its value at {_moment(item['relative_to'])}" if item.get("relative_to") is not None else ""
        text = f"{title} held {' and '.join(levels)}{unit}{by}"
    elif kind in ("promote", "suppress"):
        text = f"{title} {kind}{'d' if kind == 'promote' else 'ed'}{by}"
    elif kind == "weight_cap":
        text = f"head weight capped at norm {_value(item.get('at_most'))}"
    elif kind == "normalize_features":
        text = f"features normalised to length {_value(item.get('radius', 1.0))}"
    elif kind == "unplug":
        return f"unplugged at step {_value(item.get('step'))}{_new_settings(item)}"
    else:
        known = [f"{key} {_value(value)}" for key, value in item.items() if key != "kind" and value is not None]
        text = f"{kind}: {', '.join(known)}".replace("_", " ")
    return text + _when(item)


def _new_settings(item: Mapping[str, Any]) -> str:
    """What the optimiser gets when an arm is unplugged."""
    rates = {"lr": item.get("lr"), "weight decay": item.get("weight_decay")}
    changes = [f"{name} {_value(value)}" for name, value in rates.items() if value is not None]
    changes += ["cosine"] if item.get("cosine") else []
    return f", with {', '.join(changes)}" if changes else ""


def _when(item: Mapping[str, Any]) -> str:
    text = f", from step {item['start']}" if item.get("start") else ""
    return text + (f", until step {item['until']}" if item.get("until") is not None else "")


def _moment(relative_to: object) -> str:
    return str(relative_to) if isinstance(relative_to, str) else f"step {relative_to}"


def _value(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
