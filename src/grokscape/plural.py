"""Numbers, with or without their nouns, and spans of time, as people say them."""

import math


def counted(number: object, noun: str) -> str:
    """The number, and the noun with an s unless it is one.

    >>> counted(1, "seed"), counted(8, "seed"), counted("2,000", "step")
    ('1 seed', '8 seeds', '2,000 steps')
    """
    return f"{number} {noun}" if str(number) == "1" else f"{number} {noun}s"


def only(number: int) -> str:
    """A number that is too small.

    >>> only(3), only(0)
    ('only 3', 'none')
    """
    return f"only {number}" if number else "none"


def duration(seconds: float) -> str:
    """Seconds for people.

    >>> duration(75)
    '1 min 15 s'
    """
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def rounded(value: float) -> str:
    """Three significant digits, written out below a million.

    >>> rounded(1021.3), rounded(0.054321), rounded(2.5e7)
    ('1020', '0.0543', '2.5e+07')
    """
    return f"{float(f'{value:.3g}'):g}"
