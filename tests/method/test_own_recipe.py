"""The package's README, "Your own method", typed in as it stands there."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from conftest import TINY_RUN

REPOSITORY = Path(__file__).parents[2]


def test_method_of_the_readme_is_a_file_and_a_yaml(tmp_path, model_path, picture_path):
    readme = (REPOSITORY / "fresco_dist" / "README.md").read_text()
    section = readme.partition("## Your own method\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"`([\w/]+\.(?:py|yaml))`:\n\n```\w+\n(.*?)```", section, re.S)
    assert [name for name, _ in blocks] == ["fresco_dist/method/recipes/fading.py", "conf/fusion/fading.yaml"]
    assert sum(text.count("\n") for _, text in blocks) <= 40
    left_out = shutil.ignore_patterns("__pycache__", "assets")
    shutil.copytree(REPOSITORY / "fresco_dist", tmp_path / "fresco_dist", ignore=left_out)
    shutil.copytree(REPOSITORY / "conf", tmp_path / "fresco_dist" / "conf")  # as it is installed
    for name, text in blocks:
        path = tmp_path / ("fresco_dist" if name.startswith("conf") else "") / name
        assert not path.exists()
        path.write_text(text)

    def run(*overrides: str) -> subprocess.CompletedProcess:
        fixed = [f"image={picture_path}", f"model.path={model_path}", *TINY_RUN, "fusion=fading"]
        command = [sys.executable, "-m", "fresco_dist.launch", *fixed, f"hydra.run.dir={tmp_path / 'out'}", *overrides]
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)

    refused = run("fusion.prior_strength=-1")
    assert refused.returncode == 2 and "fusion.prior_strength must be in [0, 1e9]; got -1.0" in refused.stderr
    done = run("cluster.executor=inprocess")
    assert done.returncode == 0, done.stderr
    assert "side by side" in done.stdout and "fusion.cutoff has no effect with fusion=fading" in done.stdout
    fusion = json.loads((tmp_path / "out" / "run.json").read_text())["config"]["fusion"]
    assert fusion == {"method": "fading", "activity_map": None, "prior_strength": 2.0}
