"""The page on integrations: its first two blocks run as printed."""

import re
from pathlib import Path

import torch

PAGE = (Path(__file__).parents[2] / "docs" / "integrations.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_the_plain_loops_run_as_printed():
    names: dict = {}
    torch.manual_seed(0)
    exec("\n".join(BLOCKS[:2]), names)
    assert torch.isfinite(names["loss"])
    assert names["optimizer"].param_groups[0]["weight_decay"] == 2e-4
    assert not any(part._forward_hooks for part in names["model"].modules())
