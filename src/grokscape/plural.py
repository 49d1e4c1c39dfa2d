"""A number with its noun, as people say it."""


def counted(number: object, noun: str) -> str:
    """The number, and the noun with an s unless it is one.

    >>> counted(1, "seed"), counted(8, "seed"), counted("2,000", "step")
    ('1 seed', '8 seeds', '2,000 steps')
    """
    return f"{number} {noun}" if str(number) == "1" else f"{number} {noun}s"
