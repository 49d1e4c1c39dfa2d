"""Colours that mean the same thing in every panel, on light and on dark ground, for every kind of eye.

The hues follow Okabe and Ito (2008), darkened or lightened until each stands out against its ground by at least 3:1
(WCAG 2.2, 1.4.11). A family of arms has one hue; hands differ in dash, doses of one hand in shade.
"""

from dataclasses import dataclass
from typing import Literal

# "dot" is kept for training samples beside held-out ones.
Dash = Literal["solid", "dash", "longdash", "dashdot", "longdashdot", "dashdotdot", "dot"]
Family = Literal["baseline", "flatness", "collapse", "other", "control"]


@dataclass(frozen=True)
class Colour:
    """One colour in its two themes.

    Attributes:
        light: hex colour on the light ground.
        dark: hex colour on the dark ground.
    """

    light: str
    dark: str


INK = Colour("#1c2127", "#e8e8e4")
MUTED = Colour("#68717c", "#98a1ad")
GRID = Colour("#e7e9ec", "#2a2f37")

FAMILY_TITLES: dict[Family, str] = {
    "baseline": "Baseline",
    "flatness": "Flatness",
    "collapse": "Neural collapse",
    "other": "Other manipulations",
    "control": "Controls",
}

FAMILY_OF_PROPERTY: dict[str, Family] = {"flatness": "flatness", "curvature": "flatness", "collapse": "collapse"}

FAMILY_COLOURS: dict[Family, tuple[Colour, ...]] = {
    "baseline": (INK, MUTED),
    "flatness": (Colour("#1f78c1", "#58b4f0"), Colour("#003e6b", "#a3d2f7"), Colour("#5a8fc4", "#2c7fc0")),
    "collapse": (Colour("#d55e00", "#f0883a"), Colour("#8a3a00", "#f7c190"), Colour("#b98000", "#c9631a")),
    "other": (Colour("#a3378a", "#d06ab8"), Colour("#6a2a66", "#f0c4e6"), Colour("#8a6fb8", "#a585d8")),
    "control": (Colour("#00684a", "#1f9a72"), Colour("#6b7a1f", "#b4c46f"), Colour("#5f7f8c", "#8fb3c2")),
}

DASHES: tuple[Dash, ...] = ("solid", "dash", "longdash", "dashdot", "longdashdot", "dashdotdot")


def arm_style(family: Family, hand: int, dose: int, doses: int) -> tuple[Colour, Dash]:
    """Colour and dash of an arm: the family gives the hue, the hand the dash, the dose the shade, light to strong.

    Args:
        family: the arm's family.
        hand: rank, within the family, of what takes hold of training.
        dose: rank of the arm among the doses of this hand.
        doses: how many doses the hand has.
    """
    shades = FAMILY_COLOURS[family]
    colour = shades[0] if doses < 2 else ramp(family, dose / (doses - 1))
    return colour, DASHES[hand % len(DASHES)]


def ramp(family: Family, place: float) -> Colour:
    """A family's shade between its weakest (0) and its strongest (1) on each ground."""
    main, strong, *rest = FAMILY_COLOURS[family]
    weak = rest[0] if rest else main
    first, second, share = (weak, main, 2 * place) if place <= 0.5 else (main, strong, 2 * place - 1)
    return Colour(_between(first.light, second.light, share), _between(first.dark, second.dark, share))


def _between(first: str, second: str, share: float) -> str:
    channels = [(int(first[i : i + 2], 16), int(second[i : i + 2], 16)) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in channels)
