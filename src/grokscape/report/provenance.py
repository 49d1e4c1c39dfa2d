"""Where a run comes from: versions, device, seeds, cost, and the command that reproduces it."""

import json
from collections.abc import Mapping
from typing import Any

from grokscape.report import wording
from grokscape.report.run import Run


def provenance(run: Run) -> dict[str, Any]:
    """Versions, device, seeds, cost and the command that reproduces the run."""
    status = run.status
    versions = status.get("versions")
    facts = [
        ("Reproduce it", status.get("command") or f"grokscape run {run.name}", True),
        (
            "State",
            f"{status.get('state', 'unknown')}, step {status.get('step', run.last_step)} of "
            f"{status.get('steps') or run.spec.get('steps') or 'unknown'}",
            False,
        ),
        ("Seeds", _text(run.spec.get("seeds")), False),
        ("Device", _text(status.get("device")), False),
        (
            "Time",
            f"{wording.number(status['seconds'])} s" if status.get("seconds") is not None else "not recorded",
            False,
        ),
        (
            "Versions",
            ", ".join(f"{k} {v}" for k, v in sorted(versions.items()))
            if isinstance(versions, Mapping)
            else _text(versions),
            False,
        ),
        ("Testbed", _text(run.spec.get("testbed")), False),
        ("Model", _text(run.spec.get("model")), False),
        ("Optimiser", _text(run.spec.get("optimizer")), False),
        ("Rules of verdicts", _text(run.spec.get("verdict")), False),
    ]
    spec = json.dumps(run.spec, indent=1, ensure_ascii=False)
    return {"facts": [{"name": n, "text": t, "code": c} for n, t, c in facts], "spec": spec}


def _text(value: object) -> str:
    if value in (None, {}, []):
        return "not recorded"
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_text(v)}" for k, v in value.items())
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
