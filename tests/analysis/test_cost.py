"""The analysis loads no PyTorch, and takes seconds for a large study."""

import subprocess
import sys
import time

import synthetic
from grokscape.analysis.pipeline import findings_of


def test_no_pytorch_is_loaded(tmp_path):
    folder = synthetic.write(tmp_path / "run", synthetic.study(seeds=5))
    code = (
        "import sys\n"
        "from grokscape.analysis import analyze, summary_table\n"
        f"assert analyze({str(folder.path)!r})\n"
        "assert 'torch' not in sys.modules, 'torch was loaded'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_large_study_takes_under_ten_seconds_of_processor_time():
    arms = [*synthetic.QUICKSTART[:5]]
    made = synthetic.study(arms, seeds=100, steps=1990, every=10, extra_measures=12)
    assert len(made.frame) == 500 * 200
    assert sum("/" in name for name in made.frame.columns) - 4 == 20
    start = time.process_time()
    findings_of(made.record())
    assert time.process_time() - start < 10
