"""Where a run comes from: versions, device, seeds, cost, and the command that reproduces it."""

import json
from collections.abc import Mapping
from typing import Any

from grokscape.plural import counted, duration
from grokscape.report.run import Run


def provenance(run: Run) -> dict[str, Any]:
    """What the section on reproduction shows: {"facts": [{"name", "text", "code"}], "spec"}."""
    status, spec = run.status, run.spec
    steps = status.get("steps") or spec.get("steps") or "an unknown number"
    facts = [
        ("Reproduce it", str(status.get("command") or f"grokscape run {run.name}"), True),
        ("State", f"{status.get('state', 'unknown')}, step {status.get('step', run.last_step)} of {steps}", False),
        ("Arms × seeds", f"{len(run.arms)} × {_text(spec.get('seeds'))}", False),
        ("Seeds", _seeds(run), False),
        ("Device", _device(status), False),
        ("Cost", duration(status["seconds"]) if "seconds" in status else "not recorded", False),
        ("Versions", _text(status.get("versions")), False),
        ("Testbed", _text(spec.get("testbed")), False),
        ("Model", _text(spec.get("model")), False),
        ("Optimiser", _text(spec.get("optimizer")), False),
        ("Onset rule", _text(spec.get("onset")), False),
        ("Verdict rules", _text(spec.get("verdict")), False),
    ]
    text = json.dumps(spec, indent=1, ensure_ascii=False)
    return {"facts": [{"name": n, "text": t, "code": c} for n, t, c in facts], "spec": text}


def _seeds(run: Run) -> str:
    if not run.frame.height or not {"init_seed", "split_seed"} <= set(run.frame.columns):
        return "not recorded"
    pairs = run.frame.select("init_seed", "split_seed").unique().sort("init_seed", "split_seed").rows()
    shown = ", ".join(f"{a}/{b}" for a, b in pairs[:12])
    return f"initialisation/split {shown}" + (f" and {len(pairs) - 12} more" if len(pairs) > 12 else "")


def _device(status: Mapping[str, Any]) -> str:
    parts = [_text(status.get("device"))]
    if status.get("threads"):
        parts.append(counted(status["threads"], "thread"))
    if status.get("batched"):
        parts.append("all replicas in one batch")
    return ", ".join(parts)


def _text(value: object) -> str:
    if value is None or value in ({}, []):
        return "not recorded"
    if isinstance(value, Mapping):
        known = [(k, v) for k, v in value.items() if v is not None]
        return " · ".join(f"{str(k).replace('_', ' ')} {_text(v)}" for k, v in known)
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
