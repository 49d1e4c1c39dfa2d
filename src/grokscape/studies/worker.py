"""A worker process: `python -m grokscape.studies.worker SHARD DEVICE CHECKPOINT_SECONDS`.

It saves and stops when its standard input closes, as happens when the process that started it is gone.
"""

import os
import sys
import threading

from grokscape.studies.shards import train_shard


def main() -> None:
    """Train one shard with one thread."""
    path, device, seconds = sys.argv[1:]
    orphaned = threading.Event()

    def watch() -> None:
        """Wait until the parent's end of the pipe is gone."""
        os.read(0, 1)  # not through sys.stdin, whose lock this thread would hold when the process ends: it would abort
        orphaned.set()

    threading.Thread(target=watch, daemon=True).start()
    train_shard(path, device, 1, float(seconds), orphaned.is_set)


if __name__ == "__main__":
    main()
