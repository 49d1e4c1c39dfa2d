"""From a run folder, or any training log, to findings."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from grokscape.analysis.arms import onset_finding, survival_finding
from grokscape.analysis.controls import controls, failures
from grokscape.analysis.dispute import dispute
from grokscape.analysis.effects import effects
from grokscape.analysis.finding import Finding
from grokscape.analysis.hazard import hazard
from grokscape.analysis.lead_lag import lead_lag
from grokscape.analysis.manipulation import manipulation_finding
from grokscape.analysis.necessity import necessity
from grokscape.analysis.pooled import joined, pooled
from grokscape.analysis.record import Record
from grokscape.analysis.sufficiency import sufficiency
from grokscape.analysis.targets import targets
from grokscape.analysis.theory import theory
from grokscape.store import RunFolder, write_json

Source = RunFolder | str | Path


def analyze(source: Source | Sequence[Source], *, out: str | Path | None = None) -> list[Finding]:
    """Analyse a run folder, and write its findings.json; or pool several.

    Several runs of one study (same testbed, model and optimiser, other seeds) become one with more seeds; if
    only one study is left, its findings are returned, else what the testbeds say together.

    Args:
        source: a run folder, or several.
        out: file to which pooled findings are written, if any.

    Raises:
        RunFolderError: there is no run folder at a place.
        FrameError: two runs of one study share a seed, or differ in their rules.
    """
    if isinstance(source, RunFolder | str | Path):
        folder = source if isinstance(source, RunFolder) else RunFolder.open(source)
        found = findings_of(Record.read(folder))
        folder.write_findings([item.to_dict() for item in found])
    else:
        records = joined([Record.read(one) for one in source])
        studies = [(record, findings_of(record)) for record in records]
        found = studies[0][1] if len(studies) == 1 else pooled(studies)
    if out is not None:
        write_json(Path(out), [item.to_dict() for item in found])
    return found


def analyze_frame(frame: pl.DataFrame, spec: Mapping[str, Any] | None = None,
                  columns: Mapping[str, Mapping[str, Any]] | None = None) -> list[Finding]:
    """Analyse anybody's training log; see `frames` for the columns it needs.

    Raises:
        FrameError: a needed column is missing or not numeric.
    """
    return findings_of(Record.of(frame, spec, columns))


def findings_of(record: Record) -> list[Finding]:
    """All findings of one study."""
    found: list[Finding] = [onset_finding(record, arm.name) for arm in record.arms]
    found += [survival_finding(record, arm.name) for arm in record.arms[1:]]
    found += [manipulation_finding(record, arm) for arm in record.arms if arm.aims]
    found += controls(record)
    compared = effects(record)
    for target in targets(record, "block"):
        if target.asked:
            found += necessity(record, target, compared, failures(found, target.property_name))
    for target in targets(record, "block", "promote"):
        if target.asked:
            found.append(sufficiency(record, target, compared, failures(found, target.property_name)))
    found += lead_lag(record)
    found += hazard(record)
    found += dispute(record, found)
    return found + theory(record)
