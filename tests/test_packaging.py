"""A plain installation carries conf/ and the assets, and runs from any folder."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent


def test_plain_installation_runs_from_any_folder(tmp_path):
    site, source = tmp_path / "site", tmp_path / "source"
    left_out = shutil.ignore_patterns(
        ".*", "build", "outputs", "multirun", "training_runs", "*.egg-info", "__pycache__"
    )
    shutil.copytree(REPOSITORY, source, ignore=left_out)  # a build leaves files behind
    options = ["--no-deps", "--no-build-isolation", "--quiet", "--target", site]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, source], check=True, timeout=120)
    code = "import fresco_dist.launch as l, sys; assert l.__file__.startswith(sys.argv.pop()); sys.exit(l.main())"
    done = subprocess.run(
        [sys.executable, "-c", code, "plan_only=true", f"hydra.run.dir={tmp_path / 'out'}", str(site)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "canvas    512 x 320 px" in done.stdout
    assert (site / "fresco_dist" / "report" / "page.html").is_file()
    assert (site / "fresco_dist" / "py.typed").is_file()
