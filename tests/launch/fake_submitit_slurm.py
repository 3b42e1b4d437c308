#!/usr/bin/env python
"""Stands for sbatch, srun and sacct as submitit calls them, by the name it is called by; logs its arguments.

`sbatch` starts the tasks of its array one after the other in the background, as submitit expects.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

JOB = "4242"


def sbatch(script: str) -> None:
    text = Path(script).read_text()
    Path(os.environ["FAKE_LOG"]).write_text(text)
    copy = Path(os.environ["FAKE_LOG"]).with_name("script.sh")
    copy.write_text(text)  # submitit moves its own
    array = re.search(r"^#SBATCH --array=0-(\d+)", text, flags=re.MULTILINE)
    num_tasks = int(array[1]) + 1 if array else 1
    command = [sys.executable, str(Path(__file__).resolve()), str(copy), str(num_tasks)]
    subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    print(f"Submitted batch job {JOB}")


def run_array(script: str, num_tasks: str) -> None:
    for task in range(int(num_tasks)):
        job = {"SLURM_JOB_ID": JOB, "SLURM_JOB_NUM_NODES": "1", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}
        job |= {"SLURM_JOB_NODELIST": "node0", "SLURM_NODEID": "0", "SLURM_LOCALID": "0"}
        job |= {"SLURM_ARRAY_JOB_ID": JOB, "SLURM_ARRAY_TASK_ID": str(task)}
        subprocess.run(["bash", script], env=os.environ | job, check=False)
    Path(script).unlink()  # the array has ended


def srun(*arguments: str) -> None:
    words = list(arguments)
    while words[0].startswith("--"):
        del words[: 1 if words[0] == "--unbuffered" else 2]
    os.execvp(words[0], words)


def sacct(*_: str) -> None:
    print("JobID|State|NodeList")
    state = "RUNNING" if Path(os.environ["FAKE_LOG"]).with_name("script.sh").exists() else "COMPLETED"
    for task in range(8):
        print(f"{JOB}_{task}|{state}|node0")


if __name__ == "__main__":
    names = {"sbatch": sbatch, "srun": srun, "sacct": sacct}
    names.get(Path(sys.argv[0]).name, run_array)(*sys.argv[1:])
