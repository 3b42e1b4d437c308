"""`hydra/launcher=submitit_slurm`: one allocation per point of a sweep, as typed, on a SLURM that is not there."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TINY_RUN

PROMPT = "it's (5) ${5}: 水\\"  # jobs read once more what Hydra has read and written down
FAKE = Path(__file__).parent / "fake_submitit_slurm.py"


@pytest.mark.timeout(280)
def test_sweep_has_one_allocation_per_point_and_the_exit_code_of_the_one_that_fails(tmp_path, model_path, picture_path):
    (tmp_path / "bin").mkdir()
    for name in ("sbatch", "srun", "sacct"):
        (tmp_path / "bin" / name).symlink_to(FAKE)
    sweep = tmp_path / "sweep"
    binaries = f"{tmp_path / 'bin'}:{Path(sys.executable).parent}"
    done = subprocess.run(
        [sys.executable, "-m", "fresco_dist.launch", "-m", "hydra/launcher=submitit_slurm"]
        + ["hydra.launcher.gpus_per_node=8", "hydra.launcher.cpus_per_task=40", "hydra.launcher.timeout_min=240"]
        + [*TINY_RUN, "cluster.executor=inprocess", f"image={picture_path}", f"model.path={model_path}"]
        + [f"hydra.sweep.dir={sweep}", "video.num_frames=5,6", f"prompt={PROMPT}"],
        env=os.environ | {"PATH": f"{binaries}:{os.environ['PATH']}", "FAKE_LOG": str(tmp_path / "log")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    script = (tmp_path / "log").read_text()
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)=(\S+)$", script, flags=re.MULTILINE))
    assert options["array"] == "0-1%2"
    assert (options["gpus-per-node"], options["cpus-per-task"], options["time"]) == ("8", "40", "240")
    run = json.loads((sweep / "0" / "run.json").read_text())
    assert (run["status"], run["config"]["prompt"]) == ("done", PROMPT)
    assert not (sweep / "1" / "run.json").exists()
    assert done.returncode == 2, done.stderr  # 6 frames are bad input; the first point ran all the same
