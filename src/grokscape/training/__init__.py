"""Training: one step function and one engine for any number of replicas, with checkpoints and resuming."""

from grokscape.rules import OnsetRule
from grokscape.store import CHECKPOINT_SECONDS
from grokscape.training.columns import column_table
from grokscape.training.engine import Engine, State
from grokscape.training.optimisers import SGD, AdamW, Optimizer, bound_to_length
from grokscape.training.plan import Evaluation, Plan, Precision, Replica
from grokscape.training.run import Interrupted, Progress, Run
from grokscape.training.trained import Trained, take_out

__all__ = [
    "CHECKPOINT_SECONDS",
    "SGD",
    "AdamW",
    "Engine",
    "Evaluation",
    "Interrupted",
    "OnsetRule",
    "Optimizer",
    "Plan",
    "Precision",
    "Progress",
    "Replica",
    "Run",
    "State",
    "Trained",
    "bound_to_length",
    "column_table",
    "take_out",
]
