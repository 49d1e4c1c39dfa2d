"""Colours that mean the same thing in every panel, on light and on dark ground, for every kind of eye.

The hues follow Okabe and Ito (2008), darkened or lightened until each stands out against its ground by at least 3:1
(WCAG 2.2, 1.4.11). A family of arms has one hue; its members differ in lightness and, redundantly, in dash.
"""

from dataclasses import dataclass
from typing import Literal

Dash = Literal["solid", "dash", "longdash", "dashdot", "dot"]  # "dot" is kept for training samples beside held-out ones
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


GROUND = Colour("#ffffff", "#14171c")
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

FAMILY_COLOURS: dict[Family, tuple[Colour, ...]] = {
    "baseline": (INK, MUTED),
    "flatness": (Colour("#1f78c1", "#58b4f0"), Colour("#003e6b", "#a3d2f7"), Colour("#5a8fc4", "#2c7fc0")),
    "collapse": (Colour("#d55e00", "#f0883a"), Colour("#8a3a00", "#f7c190"), Colour("#b98000", "#c9631a")),
    "other": (Colour("#a3378a", "#d06ab8"), Colour("#6a2a66", "#f0c4e6"), Colour("#8a6fb8", "#a585d8")),
    "control": (Colour("#00684a", "#1f9a72"), Colour("#6b7a1f", "#b4c46f"), Colour("#5f7f8c", "#8fb3c2")),
}

DASHES: tuple[Dash, ...] = ("solid", "dash", "longdash", "dashdot")


def arm_style(family: Family, rank: int) -> tuple[Colour, Dash]:
    """Colour and dash of the `rank`-th arm of a family; with 3 shades and 4 dashes the pairs repeat after 12 arms."""
    shades = FAMILY_COLOURS[family]
    return shades[rank % len(shades)], DASHES[rank % len(DASHES)]


def contrast(first: str, second: str) -> float:
    """Contrast ratio of two hex colours, 1 to 21 (WCAG 2.2, relative luminance)."""
    brighter, darker = sorted((_luminance(first), _luminance(second)), reverse=True)
    return (brighter + 0.05) / (darker + 0.05)


def _luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
