"""What testbeds, networks, optimisers, rules and whole studies are written down as."""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

Size = Annotated[int, Field(ge=1, le=10**8)]  # PyTorch counts the elements of width × width and more in 64 bits
Sizes = Annotated[tuple[Size, ...], Field(min_length=1)]
Layers = Annotated[int, Field(ge=1, le=10_000)]


def _no_truth_value(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(f"expected a number, got {value}")
    return value


NUMBER = BeforeValidator(_no_truth_value)
"""Marks a number in settings that are not `Settings`: true and false are none, though Python counts with them."""


class Settings(BaseModel):
    """A frozen value that compares by content and goes to JSON and back; no unknown entries, no infinite numbers.

    Numbers may come as text or from NumPy, and a whole one as 1e4: all of these mean what they say. True and false
    do not where a number is meant, and are refused.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _numbers(cls, value: Any) -> Any:
        for name, given in value.items() if isinstance(value, dict) else ():
            field = cls.model_fields.get(name)
            parts = given if isinstance(given, list | tuple) else [given]
            if field is not None and field.annotation is not bool and any(isinstance(part, bool) for part in parts):
                raise ValueError(f"expected neither true nor false as {name}, got {given}")
        return value


def wrong(error: ValidationError) -> str:
    """What is wrong with a specification, one clause for each entry."""
    clauses = []
    for entry in error.errors():
        place = ".".join(map(str, entry["loc"]))
        said = entry["msg"].removeprefix("Value error, ")
        if entry["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            said += "; is it misspelt?"
        elif entry["type"] not in ("value_error", "json_invalid") and isinstance(entry["input"], int | float | str):
            said += f", got {entry['input']!r:.40}"
        clauses.append(f"{place + ': ' if place else ''}{said}")
    return "; ".join(clauses)
