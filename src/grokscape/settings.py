"""What testbeds, networks, optimisers, rules and whole studies are written down as."""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """A frozen value that compares by content and goes to JSON and back; no unknown entries, no infinite numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
