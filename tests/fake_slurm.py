"""sbatch, squeue and scancel that run jobs on this machine: `install` puts them into a folder that holds their state.

A file `full` there makes jobs wait, `refusal` is what sbatch says no with, `late` what it says instead of the number of
the next job that it takes, `away` takes the controller from the net, and `fate` is the state that a job ends in at
once, without running. Jobs for another cluster, which SBATCH_CLUSTERS names, are seen by who asks for that cluster.
"""

import sys
from pathlib import Path

COMMANDS = r'''
import os, pathlib, subprocess, sys
place, verb = pathlib.Path(sys.argv[0]).parent, pathlib.Path(sys.argv[0]).name
options = dict(word.lstrip("-").partition("=")[::2] for word in sys.argv[1:])
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "OUT_OF_MEMORY", "TIMEOUT")


def fail(words):
    print(words, file=sys.stderr)
    sys.exit(1)


def write(number, **changes):
    job = {**read(number), **changes}
    (place / "new").mkdir(exist_ok=True)
    (place / "new" / number).write_text("|".join((job["state"], job["name"])))
    os.replace(place / "new" / number, place / "jobs" / number)


def read(number):
    return dict(zip(("state", "name"), (place / "jobs" / number).read_text().split("|"))) if number else {}


def run(number, script):
    if os.fork():
        return
    os.setsid()
    with open(options["output"].replace("%%", "%"), "ab") as log, open(os.devnull) as nothing:
        for stream, target in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(stream.fileno(), target)
        code = subprocess.run(["bash", "-c", script]).returncode
    write(number, state="FAILED" if code else "COMPLETED")


if (place / "away").exists():
    fail("slurm_load_jobs error: Unable to contact slurm controller (connect failure)")
if verb != "sbatch" and os.environ.get("SLURM_CLUSTERS") != os.environ.get("SBATCH_CLUSTERS"):
    sys.exit()
if verb == "squeue" and "SLURM_CLUSTERS" in os.environ:
    print("CLUSTER:", os.environ["SLURM_CLUSTERS"])
if verb == "sbatch":
    if (place / "refusal").exists():
        fail((place / "refusal").read_text())
    for number in map(str, range(1, 99)):
        try:
            (place / "jobs" / number).touch(exist_ok=False)
            break
        except FileExistsError:
            pass
    script = sys.stdin.read()
    (place / f"script-{number}").write_text(" ".join(sys.argv[1:]) + "\n" + script)
    fate = place / "fate"
    state = fate.read_text() if fate.exists() else "PENDING" if (place / "full").exists() else "RUNNING"
    write(number, state=state, name=options["job-name"])
    late = place / "late"
    if late.exists():
        words = late.read_text()
        late.unlink()
        fail(words)
    print(number)
    sys.stdout.flush()
    if state == "RUNNING":
        run(number, script)
elif verb == "squeue" and "jobs" in options:
    print(read(options["jobs"])["state"])
elif verb == "squeue":
    for job in (place / "jobs").iterdir():
        state, name = (job.read_text() + "|").split("|")[:2]
        if state and state not in ENDED:
            print(job.name, state, "Resources", name, sep="|")
else:
    write(sys.argv[1], state="CANCELLED")
'''


def install(place: Path) -> Path:
    """Put the commands into a folder."""
    (place / "jobs").mkdir(parents=True)
    for verb in ("sbatch", "squeue", "scancel"):
        (place / verb).write_text(f"#!{sys.executable} -SE\n{COMMANDS}")
        (place / verb).chmod(0o755)
    return place
