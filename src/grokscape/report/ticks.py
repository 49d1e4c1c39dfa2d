"""Ticks of logarithmic axes, the same on the page and in the figure files."""

from math import ceil, floor, log10

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def log_ticks(low: float, high: float, most: int = 7) -> list[tuple[float, str]]:
    """Values and their texts between two positive ends: about `most` decades, or 1–2–5 within two of them."""
    first, last = floor(log10(low)), ceil(log10(high))
    span = log10(high) - log10(low)
    if span < 2.2:
        factors = (1, 2, 5) if span < 1.6 and most > 4 else (1, 3) if span < 1.6 or most > 4 else (1,)
        ticks = [(f * 10.0**e, _times_power(f, e)) for e in range(first, last + 1) for f in factors]
        ticks = [(value, text) for value, text in ticks if 0.999 * low <= value <= 1.001 * high]
        if len(ticks) > 1:
            return ticks
    step = max(1, ceil((last - first) / most))
    return [(10.0**e, _power(e)) for e in range(first, last + 1) if e % step == 0]


def _power(exponent: int) -> str:
    """A power of ten: written out from 0.01 to 1000, else as 10ⁿ."""
    return f"{10.0**exponent:g}" if -2 <= exponent <= 3 else ten_to(exponent)


def ten_to(exponent: int) -> str:
    """10ⁿ."""
    return "10" + str(exponent).translate(_SUPERSCRIPTS)


def _times_power(factor: int, exponent: int) -> str:
    """A digit times a power of ten: written out from 0.001 to 5000, else as 2·10ⁿ."""
    if -3 <= exponent <= 3:
        return f"{factor * 10.0**exponent:g}"
    return ten_to(exponent) if factor == 1 else f"{factor}·{ten_to(exponent)}"
