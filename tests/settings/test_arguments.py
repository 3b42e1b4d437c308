"""Arguments as people type them: flags in any place, and what is said of words that are none."""

import json
import shlex
import subprocess
import sys

import pytest
from conftest import make_picture
from hydra.main import get_args_parser

from fresco_dist.config import InputError
from fresco_dist.settings.arguments import ALONE, INFO, WITH_VALUE, read_arguments, split_flags


def test_flags_are_those_of_hydra():
    """Its own parser is asked."""
    actions = {flag: action for action in get_args_parser()._actions for flag in action.option_strings}
    assert set(actions) == {*ALONE, *WITH_VALUE}
    assert {flag for flag, action in actions.items() if action.nargs is None} == set(WITH_VALUE)
    assert tuple(actions["--info"].choices) == INFO


@pytest.mark.parametrize(
    "argv, flags, overrides",
    [
        (["a=b", "-m", "c=d"], ["-m"], ["a=b", "c=d"]),  # Hydra takes overrides in one place only
        (["a=b", "--config-dir", "P", "c=d"], ["--config-dir", "P"], ["a=b", "c=d"]),
        (["--config-dir=P=1", "a=b"], ["--config-dir", "P=1"], ["a=b"]),
        (["-cd", "P", "-m"], ["-cd", "P", "-m"], []),
        (["--multi", "--config-d", "P"], ["--multirun", "--config-dir", "P"], []),
        (["-i", "all", "a=b"], ["-i", "all"], ["a=b"]),
        (["-i", "a=b"], ["-i", "all"], ["a=b"]),
        (["--cfg=job", "~a", "a=-1"], ["--cfg", "job"], ["~a", "a=-1"]),
    ],
)
def test_flags_come_before_overrides_wherever_they_are_typed(argv, flags, overrides):
    assert split_flags(argv) == (flags, overrides)
    parsed = get_args_parser().parse_args([*flags, *overrides])
    assert parsed.overrides == overrides


def test_flag_config_dir_knows_the_home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/a")
    assert split_flags(["--config-dir=~/P"])[0] == ["--config-dir", "/home/a/P"]


@pytest.mark.parametrize(
    "argv, meant",
    [
        ("mural.jpg", "image=mural.jpg"),
        ("'photo (1).jpg'", "image=photo (1).jpg"),
        ("seed=7 mural.jpg", "image=mural.jpg"),
        ("'prompt=it flows' mural.jpg", "image=mural.jpg"),
        ("prompt=the water flows seed=7", "prompt=the water flows"),
        ("prompt=the water, it flows", 'prompt="the water, it flows"'),
        ("image=my photo.jpg", "image=my photo.jpg"),
        ("image=a.jpg the water", "image=a.jpg the water"),
        ("'the water flows'", "prompt=the water flows"),
        ("image = mural.jpg", "image=mural.jpg"),
        ("image =mural.jpg", "image=mural.jpg"),
        ("image= mural.jpg", "image=mural.jpg"),
        ("image mural.jpg", "image=mural.jpg"),
        ("'image = mural.jpg'", "image=mural.jpg"),
        ("--image mural.jpg", "image=mural.jpg"),
        ("--image=mural.jpg", "image=mural.jpg"),
        ("--prompt 'it flows, slowly'", 'prompt="it flows, slowly"'),
        ("--num-frames 5", "video.num_frames=5"),
        ("--negative-prompt 1.10", 'negative_prompt="1.10"'),
        ("-seed 5", "seed=5"),
        ("--plan-only", "plan_only=VALUE"),
        ("image", "image=VALUE"),
    ],
)
def test_argument_that_is_no_override_is_answered_with_the_one_that_is(argv, meant):
    with pytest.raises(InputError) as refused:
        read_arguments(shlex.split(argv))
    message = str(refused.value)
    assert shlex.quote(meant) in message and "\n" not in message
    read_arguments([meant])


def test_argument_of_an_evaluation_may_be_its_data_set():
    with pytest.raises(InputError, match=r"Did you mean dataset=data/set\?"):
        read_arguments(["data/set"], picture_key="dataset")


@pytest.mark.parametrize("argv", ["--xyzzy 3", "-z", "--config-dir"])
def test_flag_of_no_one_is_refused(argv):
    with pytest.raises(InputError, match="--hydra-help"):
        read_arguments(argv.split())


def test_mode_of_hydra_is_a_sweep_too():
    assert read_arguments(["image=a.png,b.png", "hydra.mode=MULTIRUN"])[1][0] == "image=a.png,b.png"


def test_command_has_the_texts_that_were_typed(command, tmp_path, picture_path):
    """In run.json, and the picture that is animated."""
    picture_path.rename(tmp_path / "bücher (1)=a, b.png")
    prompt = "it's 5 o'clock: ${5} 水,  [\"walk\"] \\ left 1_000 🐟 %s #1 "
    folder = tmp_path / "2024_05_01, é"
    done = command(
        f"image={tmp_path}/bücher (1)=a, b.png", f"prompt={prompt}", "negative_prompt=1.10", f"hydra.run.dir={folder}"
    )
    assert done.returncode == 0, done.stderr
    config = json.loads((folder / "run.json").read_text())["config"]
    assert (config["prompt"], config["negative_prompt"]) == (prompt, "1.10")


def test_command_sweeps_over_the_files_that_the_picture_tool_writes(launch, tmp_path):
    """The eleventh and twelfth are named 10 and 11, which are numbers to Hydra."""
    tool = [sys.executable, "-m", "fresco_dist.training.pictures", "--out", "P", "--num-pictures", "12", "--size"]
    subprocess.run([*tool, "32", "32"], cwd=tmp_path, check=True)
    (tmp_path / "P" / "picture" / "壁画 (1).yaml").write_text(f"image: {tmp_path}/P/other.png\nprompt: yes\n")
    make_picture(64, 48).save(tmp_path / "P" / "other.png")
    arguments = ["seed=0", "--config-dir", "P", "-m", "+picture=glob(*)", "metrics=true", "plan_only=true"]
    done = launch(*arguments, "cluster.executor=inprocess", f"hydra.sweep.dir={tmp_path}/out")
    assert done.returncode == 0, done.stderr
    assert "sweep     13 points, 13 of them different" in done.stdout


def test_command_of_words_ends_in_one_line(launch):
    done = launch("mural.jpg", tiny=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: mural.jpg: an argument is KEY=VALUE. Did you mean image=mural.jpg?\n"
