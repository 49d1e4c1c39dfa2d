"""Colours: contrast with the ground, and difference between families for colour-blind eyes."""

import json
import re
from importlib.resources import files
from itertools import combinations

import numpy as np
import pytest

import grokscape as gs
from grokscape.measures import MEASURES
from grokscape.report.arms import arms_of
from grokscape.report.palette import FAMILY_COLOURS, INK, MUTED
from grokscape.studies.presets import PRESETS

_STYLESHEET = (files("grokscape.report") / "page/report.css").read_text(encoding="utf-8")
GROUND = dict(zip(("light", "dark"), re.findall("--ground: (#[0-9a-f]{6})", _STYLESHEET), strict=True))
# Machado, Oliveira & Fernandes 2009, severity 1.0, on linear RGB.
DEFICIENCIES = {
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def linear(colour: str) -> np.ndarray:
    """Linear RGB of a hex colour."""
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def contrast(first: str, second: str) -> float:
    """Contrast ratio of two hex colours, 1 to 21 (WCAG 2.2, relative luminance)."""
    darker, brighter = sorted(linear(colour) @ [0.2126, 0.7152, 0.0722] for colour in (first, second))
    return (brighter + 0.05) / (darker + 0.05)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIE L*a*b* (D65) of linear RGB."""
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ np.clip(rgb, 0, 1) / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def test_contrast_has_its_known_ends() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#777777") == pytest.approx(1)
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.01)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_lines_stand_out_against_the_ground(theme: str) -> None:
    ground = GROUND[theme]
    for colour in (shade for shades in FAMILY_COLOURS.values() for shade in shades):
        assert contrast(getattr(colour, theme), ground) >= 3, colour
    assert contrast(getattr(INK, theme), ground) >= 7
    assert contrast(getattr(MUTED, theme), ground) >= 4.5


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("eye", ["typical", *DEFICIENCIES])
def test_families_differ_for_every_eye(theme: str, eye: str) -> None:
    seen = np.array(DEFICIENCIES.get(eye, np.eye(3).tolist()))
    firsts = {family: lab(seen @ linear(getattr(shades[0], theme))) for family, shades in FAMILY_COLOURS.items()}
    for (one, a), (two, b) in combinations(firsts.items(), 2):
        assert np.linalg.norm(a - b) > 14, (one, two)


def test_hands_differ_in_dash_and_doses_in_shade() -> None:
    def clamp(name: str, measure: str, level: float) -> dict[str, object]:
        return {
            "name": name,
            "role": "manipulation",
            "interventions": [{"kind": "clamp", "measure": measure, "at_least": level}],
        }

    listed = [clamp(f"k{level}", "kappa", level) for level in (3, 10, 30, 100)]
    listed += [clamp(f"b{level}", "bound", level) for level in (300, 900)]
    arms = {arm.name: arm for arm in arms_of({"arms": listed}, [], {"kappa": "flatness", "bound": "flatness"}, {})}
    assert {arm.dash for name, arm in arms.items() if name[0] == "k"} == {"solid"}
    assert {arm.dash for name, arm in arms.items() if name[0] == "b"} == {"dash"}
    light = [contrast(arms[f"k{level}"].colour.light, "#ffffff") for level in (3, 10, 30, 100)]
    assert light == sorted(light)
    assert len(set(light)) == 4


@pytest.mark.parametrize("weak_to_strong", [
    [{"kind": "suppress", "strength": strength} for strength in (1e-4, 1e-3, 1e-2, 1e-1)],
    [{"kind": "clamp", "at_most": level, "strength": 0.1} for level in (3.0, 2.0, 1.0, 0.5)],
])
def test_a_stronger_dose_has_a_stronger_shade_wherever_it_stands(weak_to_strong: list[dict[str, object]]) -> None:
    listed = [
        {"name": f"dose{k}", "role": "manipulation", "interventions": [{"measure": "cdnv", **weak_to_strong[k]}]}
        for k in (3, 1, 2, 0)
    ]
    arms = {arm.name: arm for arm in arms_of({"arms": listed}, [], {"cdnv": "collapse"}, {})}
    assert list(arms) == ["dose3", "dose1", "dose2", "dose0"]
    light = [contrast(arms[f"dose{k}"].colour.light, "#ffffff") for k in range(4)]
    assert light == sorted(light)


def test_no_two_arms_of_a_family_look_alike_and_all_stand_out() -> None:
    listed = [{"name": f"a{k}", "role": "control", "optimizer": {f"setting{k}": k}} for k in range(30)]
    arms = arms_of({"arms": listed}, [], {}, {})
    assert len({(arm.colour, arm.dash) for arm in arms}) == 30
    for arm in arms:
        assert contrast(arm.colour.light, GROUND["light"]) >= 3
        assert contrast(arm.colour.dark, GROUND["dark"]) >= 3


@pytest.mark.parametrize("name", PRESETS)
def test_in_our_presets_the_doses_of_a_hand_share_a_dash_that_no_other_hand_of_the_property_has(name: str) -> None:
    spec = json.loads(gs.preset(name).model_dump_json())
    properties = {measure: row.property for measure, row in MEASURES.items()}
    listed = {arm["name"]: arm for arm in spec["arms"] if arm["role"] == "manipulation"}
    dashes: dict[tuple[str, str], set[str]] = {}
    for arm in arms_of(spec, [], properties, {}):
        if arm.family in ("flatness", "collapse"):
            hand = " + ".join(f"{item['kind']} {item.get('measure')}" for item in listed[arm.name]["interventions"])
            dashes.setdefault((arm.family, hand), set()).add(arm.dash)
    for family in ("flatness", "collapse"):
        found = [dash for key, dash in dashes.items() if key[0] == family]
        assert all(len(dash) == 1 for dash in found), found
        assert len(set.union(set(), *found)) == len(found)
