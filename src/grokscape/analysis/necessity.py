"""Is a property necessary for generalisation? Arms that block it, dose by dose and hand by hand.

An arm *blocks* a measure if it holds it by design, or if its runs settle a factor away from the baseline's level, on
the side where the property is absent, whatever hand brought them there. Two arms are *matched* if their levels lie
within that factor. A *hand* is what takes hold of training: a penalty on one measure, a cap, another optimiser setting;
doses of one hand are one hand.

Whatever stops generalisation also leaves the measures of it where they were. So only an arm that was made to block the
property can harm through it, and only another such arm, or a control made to match its level, can agree; but any arm
that generalises in spite of the level contradicts (below it none does: a steep response to the dose explains both).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from grokscape.analysis.controls import void
from grokscape.analysis.design import Arm
from grokscape.analysis.dose import trend
from grokscape.analysis.effects import Call, Effect, worded
from grokscape.analysis.finding import Finding
from grokscape.analysis.frames import TRAIN_LOSS
from grokscape.analysis.manipulation import at_memorisation, log_ratio, middle, settled
from grokscape.analysis.record import Record
from grokscape.analysis.targets import Target, targets
from grokscape.plural import counted, rounded
from grokscape.rules import Rules

RULE = (
    "An arm harms if final test accuracy falls by more than {accuracy:g} or the delay grows by more than a factor of "
    "{ratio:g} (accuracy that may only be late does not count); it is intact if neither "
    "is so (TOST on accuracy, upwards open; one-sided t on the delay; level {alpha:g}, Holm over all arms). Consistent "
    "with necessary: at one level two different hands that were made to bring it there harm, and no hand at that level "
    "or beyond leaves generalisation intact, nor at or beyond another level at which one of the two harms. Belongs to "
    "the manipulation: one hand harms while another, at that level or beyond, does not. Not necessary: no arm made to "
    "block it harms, and the strongest of them is intact and takes back at least {blocked:.0%} of the way that the "
    "measure goes in the baseline after memorisation. Else inconclusive, also when a control fails."
)

OPENINGS = {
    "consistent with necessary": "The data are consistent with {property} ({title}) being necessary for generalisation",
    "not necessary": "In this study generalisation does not need {property} ({title})",
    "belongs to the manipulation": "Blocking {property} ({title}) shows no need of it",
    "inconclusive": "Whether generalisation needs {property} ({title}) stays open",
}


@dataclass(frozen=True)
class Level:
    """Where one arm brought the measure.

    Attributes:
        effect: what the arm did to generalisation.
        value: settled level, median over seeds.
        blocked: log of how far it lies from the baseline on the blocking side, median over pairs of seeds.
        share: how much of the baseline's way from memorisation to its settled level it takes back (log scale; above 1
            if it lies beyond the level at memorisation; NaN if the baseline goes no such way).
        loss: settled train loss, median over seeds.
        aimed: whether it was made to block this measure's property.
        matching: whether it is a control made to match a level.
    """

    effect: Effect
    value: float
    blocked: float
    share: float
    loss: float
    aimed: bool
    matching: bool

    @property
    def arm(self) -> Arm:
        """The arm."""
        return self.effect.arm

    @property
    def call(self) -> Call:
        """What is said of its effect."""
        return self.effect.call

    @property
    def counts(self) -> bool:
        """Whether harm that it does may be the property's."""
        return self.aimed or self.matching


def levels(record: Record, target: Target, found: list[Effect]) -> list[Level]:
    """Arms that say something and block a measure, weakest first."""
    sign = record.sign(target.column)
    values, losses = settled(record, target.column), settled(record, TRAIN_LOSS)
    way, result = baseline_way(record, target), []
    for item in found:
        own, base = record.panel.paired(item.arm.name, record.baseline.name)
        rows = record.panel.rows(item.arm.name)
        shift = middle(sign * log_ratio(values[own], values[base]))
        aimed = item.arm.role == "manipulation" and item.arm.is_to("block", target.property_name)
        held = item.check.state == "held" and item.arm.blocks(target.column)
        if item.check.valid and shift >= (0.0 if held else np.log(record.rules.match_factor)):
            share = shift / way if way > 0 else np.nan
            result.append(Level(item, middle(values[rows]), shift, share, middle(losses[rows]), aimed,
                                item.arm.control == "matched-level"))
    return sorted(result, key=lambda level: level.blocked)


def baseline_way(record: Record, target: Target) -> float:
    """Log of how far the baseline takes the measure from memorisation to its settled level; negative if backwards."""
    rows = record.panel.rows(record.baseline.name)
    early, late = at_memorisation(record, target.column)[rows], settled(record, target.column)[rows]
    return middle(record.sign(target.column) * log_ratio(early, late))


def comparisons(record: Record, found: list[Level]) -> list[dict[str, Any]]:
    """Pairs of an arm that harms and another hand that agrees (same level) or contradicts (that level or beyond)."""
    near, short = np.log(record.rules.match_factor), np.log(record.rules.beyond_factor)
    result = []
    for one in found:
        for two in found:
            gap = two.blocked - one.blocked
            if one.arm.hand == two.arm.hand or one.call != "harmed" or not one.counts:
                continue
            matched = abs(gap) <= near
            agree = matched and one.aimed and two.call == "harmed" and two.counts and one.arm.apart_from(two.arm)
            contradict = gap >= -short and two.call in ("intact", "hastened")
            if agree or contradict:
                losses = abs(float(np.log(two.loss / one.loss))) if one.loss > 0 and two.loss > 0 else np.nan
                result.append({
                    "arms": [one.arm.name, two.arm.name], "agree": agree, "matched_level": matched,
                    "hands": [one.arm.hand, two.arm.hand], "levels": [one.value, two.value],
                    "calls": [one.call, two.call], "losses": [one.loss, two.loss],
                    "matched_loss": bool(losses <= near)})
    return result


def _verdict(found: list[Level], pairs: list[dict[str, Any]], rules: Rules) -> tuple[str, list[Level], str]:
    """Verdict, the arms that decided it, and the reason in words."""
    by_name = {level.arm.name: level for level in found}
    contradicted = {pair["arms"][0]: pair["arms"][1] for pair in pairs if not pair["agree"]}
    for pair in pairs:
        if _clean(pair, pairs):
            chosen = [by_name[name] for name in pair["arms"]]
            return "consistent with necessary", chosen, _agreement(chosen, [by_name[name] for name in contradicted])
    harmed = [level for level in found if level.call == "harmed" and level.aimed]
    disputed = [level for level in harmed if level.arm.name in contradicted]
    if disputed:
        one, two = disputed[-1], by_name[contradicted[disputed[-1].arm.name]]
        beyond = [level for level in harmed if level.blocked > one.blocked]
        return "belongs to the manipulation", [one, two], (
            f"“{one.arm.title}” harmed generalisation at a level of {rounded(one.value)}, but "
            f"“{two.arm.title}” brought it to {rounded(two.value)} by another hand and left generalisation "
            f"intact, so the harm belongs to the manipulation and not to the level{_further(beyond)}")
    if harmed:
        return "inconclusive", harmed[-1:], _alone(harmed[-1], found, float(np.log(rules.match_factor)))
    return _unharmed([level for level in found if level.aimed], rules.blocked_fraction)


def _alone(one: Level, found: list[Level], near: float) -> str:
    """One hand that harms and has no second beside it, in words."""
    beside = [two for two in found
              if two.counts and abs(two.blocked - one.blocked) <= near and one.arm.apart_from(two.arm)]
    what = "no second hand that shares nothing with it brought the measure to the same level"
    if beside:
        two = beside[-1]
        what = f"the effect of “{two.arm.title}”, a second hand at the same level, is unclear"
        if two.call == "harmed":
            what = f"“{two.arm.title}”, a second hand that harmed at the same level ({rounded(two.value)}), " \
                   f"is contradicted by a third there"
        if two.call in ("intact", "hastened"):
            what = f"“{two.arm.title}”, a second hand that left it intact, stopped short of that level " \
                   f"({rounded(two.value)} against {rounded(one.value)})"
    return f"“{one.arm.title}” harmed generalisation, but {what}, so the harm may be the manipulation's"


def _clean(pair: dict[str, Any], pairs: list[dict[str, Any]]) -> bool:
    """Whether the two hands agree and nothing contradicts either, there or at any other of their doses.

    A hand that was seen to do harm which is not the level's does so at its other doses as well.
    """
    return pair["agree"] and not {other["hands"][0] for other in pairs if not other["agree"]} & set(pair["hands"])


def _further(beyond: list[Level]) -> str:
    """What harms at higher levels than the one that is disputed, in words."""
    if not beyond:
        return ""
    named = " and ".join(f"“{level.arm.title}” ({rounded(level.value)})" for level in beyond)
    return f"; {named} harmed at higher levels, at which no hand left it intact: of these this says nothing"


def _agreement(chosen: list[Level], disputed: list[Level]) -> str:
    """Two hands that agree, in words, with what limits it: hands of one kind, and levels at which hands disagree."""
    one, two = chosen
    text = f"two different hands, “{one.arm.title}” and “{two.arm.title}”, that brought it to the same " \
           f"level ({rounded(one.value)} and {rounded(two.value)}) both harmed generalisation"
    if all(level.aimed for level in chosen):
        text += ", though both press on measures of this property and no hand of another kind reached the level"
    if disputed:
        text += f"; at a level of {rounded(disputed[-1].value)} the hands disagree, and the harm belongs to " \
                "the manipulation"
    return text


def _unharmed(aimed: list[Level], enough: float) -> tuple[str, list[Level], str]:
    """Verdict where no arm made to block the measure harms."""
    if not aimed:
        return "inconclusive", [], "no arm that says something blocked it"
    last = aimed[-1]
    if last.call not in ("intact", "hastened"):
        return "inconclusive", [last], (
            f"the effect of “{last.arm.title}” is neither clearly within nor clearly beyond the margins")
    blocked = "" if np.isnan(last.share) else \
        f", which takes back {last.share:.0%} of the way it goes in the baseline after memorisation (log scale),"
    kept = f"“{last.arm.title}” kept it at {rounded(last.value)}{blocked} and generalisation stayed intact " \
           f"within the margins"
    if last.share < enough:
        return "inconclusive", [last], f"{kept}, but too little of it was blocked (less than {enough:.0%})"
    return "not necessary", [last], kept


def necessity(record: Record, target: Target, found: list[Effect], failed: list[str]) -> list[Finding]:
    """The verdict on one measure, and the comparison of hands behind it.

    Args:
        record: the study.
        target: the measure.
        found: effects of all arms.
        failed: titles of controls that failed and make this verdict void.
    """
    ordered = levels(record, target, found)
    pairs = comparisons(record, ordered)
    verdict, deciding, why = _verdict(ordered, pairs, record.rules)
    if failed:
        verdict, why = "inconclusive", void(failed, why)
    if not deciding:
        why += _mute([item for item in found if item.arm.is_to("block", target.property_name)])
    also = _also_blocked(record, target, found, deciding)
    title = record.title(target.column)
    harm = any(level.call == "harmed" for level in deciding)
    if harm:
        why += _inseparable(record, [other for other in also if other.property_name != target.property_name])
    p = max((level.effect.p_harmed if harm and level.call == "harmed" else level.effect.p_intact
             for level in deciding), default=None)
    details = "; ".join(f"“{level.arm.title}”: {worded(level.effect)}" for level in deciding)
    rules = record.rules
    first = Finding(
        f"necessity/{target.id}", "necessity", {"property": target.property_name, "measure": target.measure,
                                                "column": target.column},
        f"{OPENINGS[verdict].format(property=target.property_name, title=title)}: {why}"
        f"{f' ({details})' if details else ''}.",
        verdict, _estimates(deciding),
        min((level.effect.n for level in deciding), default=0), "TOST and one-sided paired t tests, Holm over arms", p,
        RULE.format(accuracy=rules.accuracy_margin, ratio=rules.delay_ratio_margin, alpha=rules.alpha,
                    blocked=rules.blocked_fraction),
        {"doses": doses(record, target, found), "trend": trend(record, target, found), "pairs": pairs,
         "deciding": [level.arm.name for level in deciding], "reason": why, "failed_controls": failed,
         "also_blocked": [other.measure for other in also]})
    return [first, _convergence(record, target, ordered, pairs)]


def _estimates(deciding: list[Level]) -> dict[str, dict[str, Any]]:
    result = {}
    for level in deciding:
        name = level.arm.name
        result[f"accuracy difference, {name}"] = level.effect.accuracy
        result[f"{level.effect.clock} ratio, {name}"] = level.effect.ratio
        result[f"generalised, {name}"] = level.effect.generalised
    return result


def doses(record: Record, target: Target, found: list[Effect]) -> list[dict[str, Any]]:
    """Every arm's level of the measure beside its effect, the baseline first: points of a dose–response figure.

    Both are those while the arm acted.
    """
    values, losses = settled(record, target.column), settled(record, TRAIN_LOSS)
    shares = {level.arm.name: level.share for level in levels(record, target, found)}
    result = []
    for arm, item in [(record.baseline, None), *((item.arm, item) for item in found)]:
        rows = record.panel.rows(arm.name)
        result.append({"arm": arm.name, "title": arm.title, "hand": arm.hand, "blocked_share": shares.get(arm.name),
                       "aimed": item is not None and arm.is_to("block", target.property_name),
                       "level": middle(values[rows]), "loss": middle(losses[rows]),
                       "level_per_seed": values[rows],
                       "final_accuracy_per_seed": record.moment("final_accuracy", arm.until)[rows],
                       "seeds": record.panel.seeds[rows], "effect": item.summary() if item else None})
    return result


def _mute(found: list[Effect]) -> str:
    """Which manipulations say nothing, and why; each reason once."""
    arms: dict[str, list[str]] = {}
    for item in found:
        if item.arm.role == "manipulation" and not item.check.valid:
            arms.setdefault(", ".join(item.check.reasons), []).append(f"“{item.arm.title}”")
    text = ""
    for reason, (first, *others) in arms.items():
        text += f"; {first} says nothing, for {reason}"
        if others:
            named = " and ".join(others) if len(others) <= 2 else f"{len(others)} other arms"
            text += f"; {named} say{'s' * (len(others) == 1)} nothing for the same reason"
    return text


def _also_blocked(record: Record, target: Target, found: list[Effect], deciding: list[Level]) -> list[Target]:
    """Other targeted measures that every deciding arm blocked as well: the evidence cannot tell them apart."""
    names = {level.arm.name for level in deciding}
    others = [other for other in targets(record, "block") if other.column != target.column]
    return [other for other in others
            if names and names <= {level.arm.name for level in levels(record, other, found)}]


def _inseparable(record: Record, others: list[Target]) -> str:
    """Words for measures of other properties that the deciding arms blocked too, by property."""
    titles: dict[str, list[str]] = {}
    for other in others:
        titles.setdefault(other.property_name, []).append(record.title(other.column))
    names = " and ".join(f"{name} ({'; '.join(those)})" for name, those in titles.items())
    return f"; the same arms kept {names} from arising as well, which this evidence cannot tell apart" if names else ""


def _convergence(record: Record, target: Target, found: list[Level], pairs: list[dict[str, Any]]) -> Finding:
    """The comparison of hands at matched levels as a finding of its own."""
    hands = sorted({level.arm.hand for level in found})
    against = [pair for pair in pairs if not pair["agree"]]
    clean = [pair for pair in pairs if _clean(pair, pairs)]
    verdict = "not tested" if not pairs else "hands agree" if not against else \
        "hands agree at some levels" if clean else "hands disagree"
    title = record.title(target.column)
    if not pairs:
        text = f"{counted(len(hands), 'hand')} moved {title} away from the baseline; none harms beside " \
               f"another at the same level, so there is nothing to compare"
    else:
        arms = {level.arm.name: level.arm.title for level in found}
        text = "; ".join(
            f"{title} at {rounded(pair['levels'][0])} by “{arms[pair['arms'][0]]}” and at {rounded(pair['levels'][1])} "
            f"by “{arms[pair['arms'][1]]}”: generalisation {pair['calls'][0]} and {pair['calls'][1]}"
            f" (train loss {'alike' if pair['matched_loss'] else 'not alike'})"
            for pair in [*clean[:1], *against[-1:]])
    rule = f"Levels match within a factor of {record.rules.match_factor:g}; hands agree if both harm, and disagree " \
           f"if one harms while another, at that level (short of it by a factor of {record.rules.beyond_factor:g} " \
           f"at most) or beyond, leaves generalisation intact."
    return Finding(f"convergence/{target.id}", "convergence",
                   {"property": target.property_name, "measure": target.measure},
                   text[0].upper() + text[1:] + ".", verdict, n=min((level.effect.n for level in found), default=0),
                   rule=rule, data={"hands": hands, "pairs": pairs})
