"""A run in shards, for tests of what shards are and of who trains them."""

import tiny
from grokscape.store import RunFolder
from grokscape.studies.launchers import Inline, Order
from grokscape.studies.shards import shards_of, train_shard

SPEC = tiny.spec(("baseline", "held", "paper"), seeds=5, precision="float64", steps=20)


def new_folder(path, spec=SPEC):
    return RunFolder.create(path, spec.model_dump(mode="json"))


class Scripted(Inline):
    """Trains here, after what the script says for each call; two at a time."""

    def __init__(self, script=None):
        super().__init__(Order())
        self.workers = 2
        self.script = script or (lambda shard, call: None)
        self.calls: list[str] = []

    def __call__(self, shard):
        self.calls.append(shard.name)
        self.script(shard, self.calls.count(shard.name))
        super().__call__(shard)


def stopped_shard(folder, step=7):
    """The only shard of a run, trained up to a step."""
    (shard,) = shards_of(folder, SPEC, 1)
    count = iter(range(100))
    train_shard(str(shard.folder.path), stop=lambda: next(count) == step)
    return shard
