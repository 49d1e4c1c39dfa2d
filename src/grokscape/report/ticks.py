"""Ticks of logarithmic axes, the same on the page and in the figure files."""

from math import ceil, floor, log10

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def log_ticks(low: float, high: float, most: int = 7) -> list[tuple[float, str]]:
    """Values and their texts between two positive ends: about `most` decades, or 1–2–5 within two of them."""
    first, last = floor(log10(low)), ceil(log10(high))
    span = log10(high) - log10(low)
    if span < 2.2:
        factors = (1, 2, 5) if span < 1.6 and most > 4 else (1, 3) if span < 1.6 or most > 4 else (1,)
        values = [f * 10.0**e for e in range(first, last + 1) for f in factors]
        values = [v for v in values if 0.999 * low <= v <= 1.001 * high]
        if len(values) > 1:
            return [(v, plain(v)) for v in values]
    step = max(1, ceil((last - first) / most))
    return [(10.0**e, power(e)) for e in range(first, last + 1) if e % step == 0]


def power(exponent: int) -> str:
    """A power of ten: written out from 0.01 to 1000, else as 10ⁿ."""
    return f"{10.0**exponent:g}" if -2 <= exponent <= 3 else ten_to(exponent)


def ten_to(exponent: int) -> str:
    """10ⁿ."""
    return "10" + str(exponent).translate(_SUPERSCRIPTS)


def plain(value: float) -> str:
    """A tick that need not be a power of ten."""
    if 1e-3 <= value < 1e4:
        return f"{value:.6g}"
    exponent = floor(log10(value) + 1e-9)
    factor = value / 10.0**exponent
    return power(exponent) if abs(factor - 1) < 1e-6 else f"{factor:.3g}·{power(exponent)}"
