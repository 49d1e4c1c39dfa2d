"""Checkpoints: the engine's state as safetensors, and a JSON file that is written last and makes it count.

The newest two are kept, so that a damaged file costs the work since the one before it and no more.
"""

import hashlib
import json
import warnings
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from grokscape.store import RunFolder, RunFolderError, read_json, write_bytes, write_json
from grokscape.training.engine import State

_KEPT = 2


def _tensors(state: State) -> dict[str, Tensor]:
    """The state's own tensors by name, those of a mapping as `field/key`."""
    named: dict[str, Tensor] = {}
    for field in fields(state):
        value = getattr(state, field.name)
        named |= {f"{field.name}/{k}": v for k, v in value.items()} if isinstance(value, dict) else {field.name: value}
    return named


def pack(state: State) -> dict[str, Tensor]:
    """The state as one flat mapping of tensors."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in _tensors(state).items()}


def unpack(packed: dict[str, Tensor], state: State) -> None:
    """Copy saved tensors into a state of the same run.

    They are copied, not put in its place: products of matrices may round differently at another memory alignment.

    Raises:
        RunFolderError: names or shapes are not those of the state.
    """
    places = _tensors(state)
    expected = {name: tuple(tensor.shape) for name, tensor in places.items()}
    found = {name: tuple(tensor.shape) for name, tensor in packed.items()}
    if expected != found:
        differing = sorted(name for name in expected | found if expected.get(name) != found.get(name))
        raise RunFolderError(
            f"the checkpoint does not belong to this study: {', '.join(differing)} differ in shape. "
            f"Was spec.json changed after the run began? Start the changed study in a folder of its own"
        )
    for name, tensor in packed.items():
        places[name].copy_(tensor)


def checkpoints(folder: RunFolder) -> list[Path]:
    """The JSON files of the checkpoints, oldest first."""
    return sorted((folder.path / "checkpoints").glob("*.json"))


def _digest_of_spec(folder: RunFolder, steps: int | None) -> str:
    """Of the study that had so many steps when the checkpoint was made; a run may have been made longer since."""
    spec = folder.spec if steps is None else {**folder.spec, "steps": steps}
    return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()


def save_checkpoint(folder: RunFolder, state: State, step: int, **about: Any) -> None:
    """Save the state before step `step`; the trajectory's parts so far belong to it. All but the newest two go.

    Args:
        folder: the run folder.
        state: of the engine.
        step: the number of training steps made.
        about: what else `load_checkpoint` should give back.
    """
    place, stem = folder.path / "checkpoints", f"step-{step:09d}"
    data = save(pack(state) | {"torch_rng": torch.get_rng_state()})
    write_bytes(place / f"{stem}.safetensors", data)
    steps = folder.spec.get("steps")
    digests = {"sha256": hashlib.sha256(data).hexdigest(), "spec_sha256": _digest_of_spec(folder, steps)}
    write_json(
        place / f"{stem}.json", {"step": step, "steps": steps, "parts": len(folder.parts()), **digests, **about}
    )
    kept = {path.stem for path in checkpoints(folder)[-_KEPT:]}
    for path in sorted(place.glob("step-*")):  # the JSON file of a checkpoint before its tensors
        if path.stem not in kept:
            path.unlink()


def load_checkpoint(folder: RunFolder, state: State) -> dict[str, Any]:
    """Bring a fresh state to the newest undamaged checkpoint and drop rows that came after it; step 0 if there is none.

    Raises:
        RunFolderError: the checkpoint is that of another study.
    """
    found = newest(folder)
    if found is not None:
        about, packed = found
        torch.set_rng_state(packed.pop("torch_rng"))
        unpack(packed, state)
        folder.truncate(about["parts"])
        return about
    if folder.parts() and not checkpoints(folder):
        warnings.warn(f"{folder.path} holds no checkpoint; its rows are made anew from step 0 on", stacklevel=2)
    folder.truncate(0)
    return {"step": 0}


def newest(folder: RunFolder) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """What is known of the newest undamaged checkpoint, and its tensors; None if there is none.

    Raises:
        RunFolderError: the checkpoint is that of another study.
    """
    for path in reversed(checkpoints(folder)):
        try:
            about, packed = _read(folder, path)
        except (RunFolderError, OSError) as damage:
            warnings.warn(f"{damage}; going on from an earlier moment of the run", stacklevel=3)
            continue
        if about.get("spec_sha256") not in (None, _digest_of_spec(folder, about.get("steps"))):
            raise RunFolderError(
                f"{folder.path / 'spec.json'} was changed after the run began; restore it to go on, "
                f"or start the changed study in a folder of its own"
            )
        return about, packed
    return None


def _read(folder: RunFolder, path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    about = read_json(path)
    tensors = path.with_suffix(".safetensors")
    data = tensors.read_bytes()
    if hashlib.sha256(data).hexdigest() != about.get("sha256"):
        raise RunFolderError(f"{tensors} is damaged: its SHA-256 is not the one in {path.name}")
    if len(folder.parts()) < about["parts"]:
        raise RunFolderError(f"{path} expects {about['parts']} parts of the trajectory, got {len(folder.parts())}")
    return about, load(data)
