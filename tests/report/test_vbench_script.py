"""launch/vbench: the script as it is typed, and one dimension, both up to VBench itself, for which fakes stand."""

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from test_vbench import DIMENSIONS, METHODS, RECORDED, REPOSITORY, evaluation, recorded  # noqa: F401 (two fixtures)

from fresco_dist.report.comparison import read_comparison
from fresco_dist.report.vbench.exporting import export
from fresco_dist.report.vbench.results import read_results

SCRIPTS = REPOSITORY / "launch" / "vbench"


def test_dimension_gives_vbench_the_list_that_it_was_recorded_with(recorded):  # noqa: F811
    spec = spec_from_file_location("dimension", SCRIPTS / "dimension.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    listed = module.full_info(recorded, "fresco", "i2v_subject")
    assert (
        json.loads(json.dumps(listed).replace(str(recorded), "/out"))
        == RECORDED["results/fresco/i2v_subject_full_info.json"]
    )


FAKE_VBENCH = """
import json, os, sys, types
from PIL import Image

class Frame:
    size = int(os.environ["FAKE_FRAME"])
    asnumpy = lambda self: self

class Reader:
    def __init__(self, path, num_threads): assert os.path.exists(path)
    __len__ = lambda self: 81
    __getitem__ = lambda self, index: Frame()

class VBenchI2V:  # evaluates as that of vbench 0.1.5 does, with its way to save
    def __init__(self, device, full_info_dir, output_path): self.device, self.output_path = device, output_path
    def evaluate(self, videos_path, name, dimension_list, local):
        assert local and self.device == "cuda" and Image.MAX_IMAGE_PIXELS is None
        videos = json.load(open(self.build_full_info_json(videos_path, name, dimension_list, custom_prompt=False)))
        with open(os.path.join(self.output_path, name + "_eval_results.json"), "w") as file:
            results = [{"video_path": video["video_list"][0], "video_results": 0.5} for video in videos]
            file.write(json.dumps({dimension_list[0]: [0.5, results]})[:int(os.environ["FAKE_CUT"])])
        sys.exit(1) if int(os.environ["FAKE_CUT"]) < 999 else None

cuda = types.SimpleNamespace(is_available=lambda: os.environ["FAKE_GPU"] == "1")
modules = {"torch": {"cuda": cuda}, "decord": {"VideoReader": Reader}, "vbench2_beta_i2v": {"VBenchI2V": VBenchI2V}}
for name, contents in modules.items():
    sys.modules[name] = types.SimpleNamespace(**contents)
"""


@pytest.mark.parametrize(
    "settings, status, told",
    [
        ({}, 0, ""),
        ({"FAKE_CUT": "40"}, 1, ""),  # ends while it writes
        ({"FAKE_GPU": "0"}, 2, "error: VBench-I2V needs a CUDA GPU; none was found.\n"),
        (
            {"FAKE_FRAME": str(10**12)},
            2,
            r"error: \S+-0.mp4 takes 486000.0 GB of memory in VBench; \S+ GB are available.\n",
        ),
    ],
)
def test_dimension_leaves_whole_results_or_none(evaluation, tmp_path, settings, status, told):  # noqa: F811
    out = tmp_path / "out"
    export(read_comparison(evaluation), out)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(FAKE_VBENCH)
    fake = {"PYTHONPATH": str(tmp_path / "site"), "FAKE_FRAME": "100", "FAKE_CUT": "999", "FAKE_GPU": "1"}
    command = [sys.executable, SCRIPTS / "dimension.py", out, "fresco", "i2v_subject"]
    done = subprocess.run(command, env=os.environ | fake | settings, capture_output=True, text=True)
    assert done.returncode == status and re.fullmatch(told, done.stderr), done.stderr
    names = {f"i2v_subject_{kind}.json" for kind in ("eval_results", "full_info")} if status == 0 else set()
    assert {path.name for path in (out / "results" / "fresco").glob("*.json")} == names
    if status == 0:
        assert read_results(out)["fresco"] == {
            picture: {"i2v_subject": 0.5} for picture in ("mural", "a sea of names-0")
        }
        assert len(list((out / "results" / "fresco").iterdir())) == 2


FAKE_PYTHON = """#!/usr/bin/env bash
# Stands for VBench's Python: logs what it is told, writes a result, or ends as FAKE_STATUS says for a dimension.
shift # dimension.py
echo "$2 $3 VBENCH_CACHE_DIR=$VBENCH_CACHE_DIR TORCH_HOME=$TORCH_HOME offline=$HF_HUB_OFFLINE in $PWD" >>"$FAKE_LOG"
if [[ $3 == "${FAKE_STATUS%%=*}" ]]; then exit "${FAKE_STATUS#*=}"; fi
mkdir -p "$1/results/$2"
echo '{}' >"$1/results/$2/$3_eval_results.json"
"""


@pytest.fixture
def cache(tmp_path) -> Path:
    """All files of weights, of one byte each, and a VBench that seems to be installed."""
    folder = tmp_path / "cache"
    for name in re.findall(r'^    "([^|]+)\|', (SCRIPTS / "run.sh").read_text(), flags=re.MULTILINE):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("w")
    (folder / "venv" / "bin").mkdir(parents=True)
    shutil.copy(SCRIPTS / "requirements.txt", folder / "venv" / "installed.txt")
    (folder / "venv" / "bin" / "python").write_text(FAKE_PYTHON)
    (folder / "venv" / "bin" / "python").chmod(0o755)
    return folder


@pytest.fixture
def run_script(tmp_path, evaluation, cache):  # noqa: F811
    """`run_script(*words)` types `launch/vbench/run.sh WORDS OUT CACHE`; `log()` is what VBench's Python was told."""
    out, log = tmp_path / "out of it", tmp_path / "log"
    export(read_comparison(evaluation), out)

    def run(*words: str, **settings: str) -> subprocess.CompletedProcess:
        environment = os.environ | {"FAKE_LOG": str(log), "FAKE_STATUS": "none=0"} | settings
        command = [SCRIPTS / "run.sh", *words, out, cache]
        return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60)

    run.out, run.cache = out, cache
    run.log = lambda: log.read_text().splitlines() if log.exists() else []
    return run


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="needs shellcheck")
def test_script_passes_shellcheck():
    done = subprocess.run(["shellcheck", "-x", SCRIPTS / "run.sh"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_script_has_the_dimensions_of_the_tables():
    listed = re.search(r"^dimensions=\((.*)\)$", (SCRIPTS / "run.sh").read_text(), flags=re.MULTILINE)
    assert listed and listed[1].split() == DIMENSIONS


def test_script_names_exactly_the_weights_that_are_missing(run_script):
    assert run_script("--check").stdout == f"weights    all in {run_script.cache}\n"
    (run_script.cache / "amt_model" / "amt-s.pth").unlink()
    (run_script.cache / "models" / "clip_vitb16_pretrain.pth.tar").write_text("")  # a download that was cut short
    done = run_script()
    assert (done.returncode, done.stdout) == (2, "") and run_script.log() == []
    assert done.stderr.splitlines() == [
        f"error: weights are missing, or empty, in {run_script.cache}:",
        "  amt_model/amt-s.pth (motion_smoothness)",
        "      https://huggingface.co/lalala125/AMT/resolve/main/amt-s.pth",
        "  models/clip_vitb16_pretrain.pth.tar (i2v_background)",
        "      in https://github.com/ssundaram21/dreamsim/releases/download/v0.2.0-checkpoints/"
        "dreamsim_ensemble_checkpoint.zip",
    ]


def test_script_refuses_a_folder_that_is_no_export(run_script):
    (run_script.out / "videos.json").unlink()
    done = run_script("--check")
    assert done.returncode == 2 and done.stderr.startswith("error: OUT must be a folder that `python -m fresco_dist.")
    assert subprocess.run([SCRIPTS / "run.sh"], capture_output=True).returncode == 2


def test_script_measures_all_offline_and_goes_on_where_it_was(run_script):
    done = run_script(FAKE_STATUS="imaging_quality=143")
    assert done.returncode == 143 and len(run_script.log()) == 4  # terminated: nothing further is begun
    done = run_script()
    assert done.returncode == 0, done.stderr
    cache, told = run_script.cache, run_script.log()
    where = f"VBENCH_CACHE_DIR={cache} TORCH_HOME={cache}/torch offline=1 in {cache}"
    expected = [f"{method} {dimension} {where}" for method in METHODS for dimension in DIMENSIONS]
    assert told == expected[:4] + expected[3:]
    assert run_script().returncode == 0 and len(run_script.log()) == len(told)
    weights = cache / "dino_model" / "dino_vitbase16_pretrain.pth"
    assert (cache / "torch" / "hub" / "checkpoints" / weights.name).samefile(weights)
    assert (cache / "models" / "checkpoints" / weights.name).samefile(weights)
    assert (cache / "models" / "facebookresearch_dino_main" / "hubconf.py").is_file()


def test_script_goes_on_after_a_dimension_that_fails_but_not_on_a_wrong_machine(run_script):
    done = run_script(FAKE_STATUS="motion_smoothness=1")
    assert done.returncode == 1 and len(run_script.log()) == 12
    assert done.stderr.splitlines() == [f"failed     {method} motion_smoothness" for method in METHODS]
    assert run_script(FAKE_STATUS="motion_smoothness=2").returncode == 2 and len(run_script.log()) == 13


def test_script_installs_with_a_python_that_vbench_runs_on(run_script):
    (run_script.cache / "venv" / "installed.txt").unlink()
    done = run_script(FRESCO_DIST_VBENCH_PYTHON="/no/python3.12")
    assert (done.returncode, run_script.log()) == (2, [])
    assert done.stderr == "error: FRESCO_DIST_VBENCH_PYTHON must be a Python 3.10 or 3.11; got /no/python3.12.\n"
