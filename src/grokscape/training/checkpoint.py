"""Checkpoints: the engine's state as safetensors, and a JSON file that is written last and makes it count."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from grokscape.store import RunFolder, read_json, write_bytes, write_json
from grokscape.training.engine import State


def pack(state: State) -> dict[str, Tensor]:
    """The state as one flat mapping of tensors."""
    packed: dict[str, Tensor] = {}
    for field in fields(state):
        value = getattr(state, field.name)
        entries = (
            {f"{field.name}/{key}": tensor for key, tensor in value.items()}
            if isinstance(value, dict)
            else {field.name: value}
        )
        packed |= {key: tensor.detach().cpu().contiguous() for key, tensor in entries.items()}
    return packed


def unpack(packed: dict[str, Tensor], state: State) -> None:
    """Put saved tensors into a state of the same run."""
    for field in fields(state):
        value = getattr(state, field.name)
        if isinstance(value, dict):
            for key in value:
                value[key] = packed[f"{field.name}/{key}"].to(value[key].device)
        else:
            setattr(state, field.name, packed[field.name].to(value.device))


def save_checkpoint(folder: RunFolder, state: State, step: int, seconds: float) -> None:
    """Save the state before step `step`; the trajectory's parts so far belong to it. Older checkpoints go."""
    place = folder.path / "checkpoints"
    older = sorted(place.glob("*.json"))
    stem = f"step-{step:09d}"
    packed = pack(state) | {"torch_rng": torch.get_rng_state()}
    write_bytes(place / f"{stem}.safetensors", save(packed))
    write_json(place / f"{stem}.json", {"step": step, "parts": len(folder.parts()), "seconds": seconds})
    for path in older:
        if path.stem != stem:
            path.unlink()
            path.with_suffix(".safetensors").unlink(missing_ok=True)


def latest_checkpoint(folder: RunFolder) -> Path | None:
    """The JSON file of the newest checkpoint, if there is one."""
    found = sorted((folder.path / "checkpoints").glob("*.json"))
    return found[-1] if found else None


def load_checkpoint(folder: RunFolder, state: State) -> dict[str, Any]:
    """Bring a fresh state to the newest checkpoint and drop rows that came after it; step 0 if there is none."""
    path = latest_checkpoint(folder)
    if path is None:
        folder.truncate(0)
        return {"step": 0, "parts": 0, "seconds": 0.0}
    about = read_json(path)
    packed = load(path.with_suffix(".safetensors").read_bytes())
    torch.set_rng_state(packed.pop("torch_rng"))
    unpack(packed, state)
    folder.truncate(about["parts"])
    return about
