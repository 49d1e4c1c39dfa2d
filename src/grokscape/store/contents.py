"""What a run folder's JSON files must hold for the analysis and the report to read them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from grokscape.store.files import RunFolderError

STATUS = {
    "state": str, "step": int, "steps": int, "parts": int, "seconds": int | float, "seconds_measuring": int | float,
    "device": str, "launcher": str, "workers": int, "replicas": list,
}
_Number, _Object = int | float | None, dict | None
SPEC: dict[str, Any] = {  # what is read of a study after its training but its rules; other entries may be anything
    "arms": [{
        **dict.fromkeys(("testbed", "optimizer", "model"), _Object),
        "interventions": [{
            **dict.fromkeys(("at_least", "at_most", "start", "until", "step"), _Number),
            "kind": str, "measure": str | None, "relative_to": str | _Number,
        }],
    }],
    "steps": _Number,
}

FINDING: dict[str, Any] = {
    "id": str, "kind": str, "subject": dict, "statement": str, "verdict": str | None, "estimates": dict, "n": int,
    "test": str | None, "p": _Number, "rule": str, "data": dict,
}


def check_entries(path: Path, value: Mapping[str, Any], kinds: Mapping[str, Any], remedy: str) -> None:
    """Raise a `RunFolderError` that names an entry of another type than it was written with."""
    for name, got in _misfits(value, kinds):
        raise RunFolderError(f"{path} is damaged: its entry {name!r} is {json.dumps(got):.40}; {remedy}")


def check_objects(path: Path, values: Sequence[Any], remedy: str, kinds: Mapping[str, Any] = {}) -> None:
    """Raise a `RunFolderError` unless all are JSON objects with all of these entries."""
    for value in values:
        if not isinstance(value, dict) or not value.keys() >= kinds.keys():
            raise RunFolderError(f"{path} is damaged: it holds {json.dumps(value):.40}; {remedy}")
        check_entries(path, value, kinds, remedy)


def _misfits(value: Any, kind: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Entries that are not of a kind: a type, or {entry: kind} or [kind], which may be null; absent ones are none."""
    if isinstance(value, bool) or not isinstance(value, type(kind) | None if isinstance(kind, dict | list) else kind):
        yield name, value
    elif isinstance(kind, dict):
        for entry in [entry for entry in kind if entry in (value or ())]:
            yield from _misfits(value[entry], kind[entry], f"{name}.{entry}".lstrip("."))
    elif isinstance(kind, list):
        for number, item in enumerate(value or ()):
            yield from _misfits(item, kind[0], f"{name}.{number}")
