"""The run folder: plain files that outlive this program. No PyTorch here.

    spec.json            what was asked for
    status.json          how far it got: {"state": "running" | "interrupted" | "finished" | "failed", "step": …, …}
    trajectory/part-*.parquet   one row per replica and measured step; parts are only ever added
    checkpoints/         state to go on from; the newest two
    shards/*             run folders of some seeds each, where a run was trained in several processes
    findings.json, figures/, report.html   what the analysis found

Columns of a trajectory: `replica`, `arm`, `seed`, `init_seed`, `split_seed`, `step`, then one column per split and
measure, named `split/measure`: `train/…`, `test/…` (held-out around held-out means), `cross/…` (held-out around train
means), `params/…` (of the parameters alone). Its metadata: measure, split, property, direction, unit, source, title.

Every file is written beside its place and moved over it, so a reader never sees half a file.
"""

from grokscape.store.files import RunFolderError, read_json, write_bytes, write_json
from grokscape.store.folder import CHECKPOINT_SECONDS, KEYS, RunFolder, damaged_part

__all__ = [
    "CHECKPOINT_SECONDS",
    "KEYS",
    "RunFolder",
    "RunFolderError",
    "damaged_part",
    "read_json",
    "write_bytes",
    "write_json",
]
