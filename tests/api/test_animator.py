"""The Python interface: what a call takes and gives, beside the command; every public name's example."""

import asyncio
import doctest
import errno
import json
import os
import subprocess
import sys
import warnings
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from conftest import HERE, TINY_RUN, make_picture, run_here, settings_of
from make_jobs import make_config
from omegaconf import OmegaConf

import fresco_dist
from fresco_dist import launch
from fresco_dist.api.progress_bar import ProgressBar
from fresco_dist.config import ExecutorKind
from fresco_dist.jobs.pool import Pool
from fresco_dist.jobs.progress import Progress, nobody
from fresco_dist.runtime import ray_cluster


@pytest.mark.parametrize("name", fresco_dist.__all__)
def test_public_name_has_an_example_that_runs(name, tmp_path):
    public = getattr(fresco_dist, name)
    given = {"fresco_dist": fresco_dist, "picture": make_picture(96, 64), "folder": tmp_path}
    found = doctest.DocTestFinder().find(public, name, globs=given)
    assert any(test.examples for test in found)
    for test in found:
        runner = doctest.DocTestRunner()
        assert runner.run(test).failed == 0


def test_call_makes_the_bits_of_the_command(animate, picture_path, folder, model_path):
    clip = animate(picture_path, prompt="the figures walk", seed=7)
    command = [f"image={picture_path}", "prompt='the figures walk'", "seed=7", f"hydra.run.dir={folder}"]
    assert run_here([*TINY_RUN, f"model.path={model_path}", "cluster.executor=inprocess", *command]) == 0
    assert clip.figures["latents_sha256"] == json.loads((folder / "run.json").read_text())["latents_sha256"]


def test_result_is_in_memory_and_nothing_is_left_behind(animate, picture_path, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "passing"))
    (tmp_path / "passing").mkdir()
    clip = animate(picture_path)
    assert clip.frames.shape == (5, 48, 96, 3) and clip.frames.dtype == np.uint8 and clip.path is None
    assert clip.latents.shape == (1, 4, 2, 12, 24) and clip.latents.dtype == np.float32
    assert not list((tmp_path / "passing").iterdir())


def test_frames_have_the_size_of_the_video(animate):
    assert animate(make_picture(90, 46)).frames.shape[1:3] == (46, 90)


def test_folder_has_the_products_and_is_done_the_second_time(animate, picture_path, folder):
    first = animate(picture_path, folder=folder)
    written = (folder / "video.mp4").stat().st_mtime_ns
    again = animate(picture_path, folder=str(folder))
    assert first.path == again.path == folder
    assert (folder / "video.mp4").stat().st_mtime_ns == written
    assert (again.latents == first.latents).all() and again.figures == first.figures
    assert np.abs(again.frames.astype(int) - first.frames).mean() < 15  # it has been through the video


def test_settings_of_a_call_are_its_own(animate, picture_path):
    before = animate(picture_path).figures
    other = animate(picture_path, seed=2, tiles={"overlap": 0.25}, **{"fusion.prior_strength": 4}).figures
    assert other["config"]["tiles"]["overlap"] == 0.25 and other["config"]["fusion"]["prior_strength"] == 4
    assert animate(picture_path).figures["latents_sha256"] == before["latents_sha256"]


@pytest.mark.parametrize("text", ["it's 5, or ${5}", '"quoted" \\ = [a, {b}]', "水在流动 🌊", "null", " a\nb "])
def test_any_text_is_a_prompt(animate, picture_path, text):
    assert animate(picture_path, prompt=text).figures["config"]["prompt"] == text


def test_rate_of_a_clip_may_be_given_back(animate, picture_path):
    clip = animate(picture_path, video={"fps": Fraction(24000, 1001)})
    assert clip.fps == Fraction(24000, 1001)
    assert animate(picture_path, **{"video.fps": clip.fps}).fps == clip.fps


def test_lists_of_sections_are_those_of_the_command(animate, picture_path):
    with pytest.raises(fresco_dist.InputError, match="nowhere.safetensors"):
        animate(picture_path, **{"model.loras": [{"path": "nowhere.safetensors", "weight": 0.5}]})


@pytest.mark.parametrize("kind", [np.array, OmegaConf.create, tuple])
def test_lists_may_be_arrays_and_the_like(animate, picture_path, kind):
    clip = animate(picture_path, sampler={"sigmas": kind([1.0, 0.8, 0.5]), "num_steps": np.int64(3)})
    assert clip.figures["config"]["sampler"]["sigmas"] == [1.0, 0.8, 0.5]


def test_group_of_the_users_own(animate, picture_path, tmp_path, model_path):
    (tmp_path / "conf" / "picture").mkdir(parents=True)
    (tmp_path / "conf" / "picture" / "a b.yaml").write_text(f"# @package _global_\nimage: {picture_path}\nseed: 5\n")
    given = settings_of(TINY_RUN) | {"path": model_path, "cluster": HERE, "progress": False}
    with fresco_dist.Animator(config_dir=tmp_path / "conf", **given) as animate:
        assert animate(picture="a b").figures["config"]["seed"] == 5


def test_callback_is_told_of_every_tile(animate, picture_path):
    told = []
    animate(picture_path, callback=told.append)
    tiles = [progress for progress in told if progress.preview is None]
    denoised = [progress for progress in tiles if progress.phase == "denoise"]
    assert [progress.done for progress in denoised] == list(range(1, denoised[0].total + 1))
    assert denoised[-1].step == denoised[-1].num_steps == 3
    assert {progress.phase for progress in tiles} == {"encode", "denoise", "decode"}


def test_error_of_a_callback_ends_the_call(animate, picture_path):
    def stop(progress):
        raise StopIteration("enough")

    with pytest.raises(StopIteration, match="enough"):
        animate(picture_path, callback=stop)
    assert animate(picture_path).figures["status"] == "done"


def test_calls_together_share_what_they_can(animate, picture_path):
    calls = [{"image": picture_path, "seed": seed} for seed in (1, 2)]
    together = animate.together(calls)
    alone = [animate(**call) for call in calls]
    assert [clip.figures["latents_sha256"] for clip in together] == [clip.figures["latents_sha256"] for clip in alone]


def test_errors_of_calls_together_may_be_returned(animate, picture_path, folder):
    calls = [{"image": "nowhere.png"}, {"image": picture_path, "folder": folder}, {"image": picture_path}]
    nothing, clip, other = animate.together(calls, return_exceptions=True)
    assert isinstance(nothing, fresco_dist.InputError) and clip.path == folder and other.path is None
    assert clip.figures["latents_sha256"] == other.figures["latents_sha256"]
    with pytest.raises(fresco_dist.InputError, match="^image: no such file"):
        animate.together(calls)


def test_calls_together_are_mappings_and_have_folders_of_their_own(animate, picture_path, folder):
    with pytest.raises(fresco_dist.InputError, match="must be its arguments"):
        animate.together([picture_path])
    same = {"image": picture_path, "folder": folder}
    with pytest.raises(fresco_dist.InputError, match=f"^folder must be another one for each .* {folder} twice"):
        animate.together([same, same | {"seed": 1}])


def test_run_of_other_settings_in_a_folder_is_told_of(animate, picture_path, folder):
    animate(picture_path, folder=folder)
    with pytest.warns(UserWarning, match=f"{folder} has a run with other prompt, seed: this one takes its place"):
        animate(picture_path, folder=folder, seed=1, prompt="rain")


def test_equal_calls_have_frames_and_latents_of_their_own(animate, picture_path):
    first, second = animate.together([{"image": picture_path}] * 2)
    for one, other in ((first.frames, second.frames), (first.latents, second.latents)):
        before = other.copy()
        one[:] = 0
        assert before.any() and (other == before).all()


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"sampler.num_stepz": 3}, "sampler.num_stepz: there is no such key. Did you mean sampler.num_steps?"),
        ({"fusion": "frescoo"}, "fusion must be one of"),
        ({"seed": "seven"}, "seed: "),
        ({"image": "nowhere.png"}, "image: no such file: nowhere.png"),
        ({"image": np.zeros((4, 4, 2), np.uint8)}, "image must be a picture's file, a PIL image or an array"),
        ({"fusion.activity_map": np.zeros((4, 4), np.int64)}, "fusion.activity_map must be a picture's file"),
        ({"tiles": {"overlap": 2}}, "tiles.overlap must be in"),
        ({"prompt": "???"}, "prompt must be given"),
        ({"image": "~nobody.png"}, "image: no such file: ~nobody.png"),
        ({"tiles": {1: 2}}, "tiles.1: there is no such key"),
        ({"tiles": {"overlap": 0.25}, "tiles.overlap": 0.5}, "tiles.overlap must be given once; got 0.25 and 0.5."),
        ({"prompt": "a\ud800b"}, "prompt must be Unicode text"),
        ({"folder": "a\0b"}, "folder must be a path"),
        (
            {"image": torch.zeros(3, 8, 8)},
            "image must be a text, a path, a number, a list, or a picture as PIL or numpy",
        ),
        ({"callback": 3}, "callback must be a function of a Progress, or None; got 3."),
        ({"folder": Path(__file__)}, "folder must be a folder that can be written"),
    ],
)
def test_bad_input_is_one_line_before_anything_starts(animate, picture_path, settings, words):
    with pytest.raises(fresco_dist.InputError) as refused:
        animate(**({"image": picture_path} | settings))
    assert str(refused.value).startswith(words) and "\n" not in str(refused.value)


def test_what_has_no_effect_is_a_warning(animate, picture_path):
    with pytest.warns(UserWarning, match="fusion.cutoff_active has no effect with fusion=fresco"):
        animate(picture_path, **{"fusion.cutoff_active": 0.1})
    with warnings.catch_warnings(action="error", category=UserWarning):
        animate(picture_path)


def test_warning_names_what_the_call_has(animate, picture_path, folder):
    with (
        mock.patch("fcntl.flock", side_effect=OSError(errno.ENOLCK, "No locks available")),
        pytest.warns(UserWarning) as told,
    ):
        animate(picture_path, folder=folder)
    assert str(told[0].message) == "folder cannot be locked (No locks available): start no other run in it"
    assert told[0].filename == __file__


def test_works_under_a_running_event_loop(animate, picture_path):
    async def both() -> tuple:
        here = animate(picture_path)
        ticks = 0
        beside = asyncio.create_task(asyncio.to_thread(animate, picture_path))
        while not beside.done():
            await asyncio.sleep(0.01)
            ticks += 1
        return here, await beside, ticks

    here, beside, ticks = asyncio.run(both())
    assert here.figures["latents_sha256"] == beside.figures["latents_sha256"] and ticks > 1


def test_in_process_it_leaves_the_environment_alone(animate, picture_path, monkeypatch):
    for name in launch.ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    before = dict(os.environ)
    animate(picture_path)
    assert {name for name in os.environ.keys() - before.keys() if name in launch.ENVIRONMENT or "RAY" in name} == set()


def test_workers_stay_warm_on_ray(warm_pool, picture_path, model_path):
    animate = fresco_dist.Animator(path=model_path, progress=False, **settings_of(TINY_RUN))
    animate._pool = warm_pool
    cluster = {"num_workers": 2, "timeout_s": 60}
    first = animate(picture_path, cluster=cluster)
    assert first.figures["num_workers"] == 2 and first.latents.flags.writeable and first.frames.flags.writeable
    started = warm_pool._executor
    animate(picture_path, cluster=cluster, seed=3)
    assert warm_pool._executor is started


def test_ray_without_a_token_is_refused_in_one_line(picture_path, tmp_path):
    code = f"""
import ray, fresco_dist
with fresco_dist.Animator("synthetic", progress=False) as animate:
    animate.plan({str(picture_path)!r})
    try:
        animate({str(picture_path)!r})
    except fresco_dist.InputError as error:
        print(error)
"""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=clean)
    assert done.stdout.startswith("RAY_AUTH_MODE must be token when ray is imported"), done.stderr


def test_import_is_light():
    code = "import sys, fresco_dist; fresco_dist.Animator(); sys.exit(sum(m in sys.modules for m in ('torch', 'ray')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_call_in_its_own_callback_is_refused(animate, picture_path):
    with pytest.raises(fresco_dist.InputError, match="must not be called in its own callback"):
        animate(picture_path, callback=lambda progress: animate(picture_path))
    with pytest.raises(fresco_dist.InputError, match="must not be closed in its own callback"):
        animate(picture_path, callback=lambda progress: animate.close())
    assert animate(picture_path).figures["status"] == "done"


@pytest.mark.parametrize("settings, words", [({"plan_only": True}, "animate.plan"), ({"folder": 3}, "folder must be")])
def test_call_refuses_what_it_cannot_return(animate, picture_path, settings, words):
    with pytest.raises(fresco_dist.InputError, match=words):
        animate(picture_path, **settings)


def test_warning_is_at_the_line_of_the_call_and_at_each_call(animate, picture_path):
    for _ in range(2):
        with pytest.warns(UserWarning) as told:
            animate(picture_path, **{"fusion.cutoff_active": 0.1, "video.format": "prores"})
        assert [str(warning.message)[:23] for warning in told] == ["fusion.cutoff_active ha", "no browser plays video."]
        assert {warning.filename for warning in told} == {__file__}


def test_bars_of_phases_that_alternate_stay(capfd):
    with ProgressBar(nobody, shown=True) as bar:
        for done in range(1, 4):
            for phase in ("denoise", "decode"):
                bar(Progress(phase, done, 3))
    shown = capfd.readouterr().err
    assert "denoise: 100%" in shown and "decode: 100%" in shown and shown.count("denoise:   0%") == 1


def test_terminal_around_it_is_left_to_the_program(animate, picture_path, monkeypatch, capsys):
    """What rich takes for a terminal, or a notebook, it writes to by itself."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    animate(picture_path, callback=lambda progress: print("note: mine"))
    assert capsys.readouterr().out.startswith("note: mine\n")
    assert animate.plan(picture_path).startswith("image     96 x 48 px\n")


def test_plan_writes_nothing_where_the_call_would(animate, folder):
    assert "windows" in animate.plan(make_picture(96, 48), folder=folder)
    assert not folder.exists()


def test_ray_ends_with_the_last_that_uses_it(monkeypatch):
    ended = []
    monkeypatch.setattr(ray_cluster, "stop_ray", lambda: ended.append(True))
    monkeypatch.setattr(ray_cluster, "_num_users", 0)
    first, second = Pool(), Pool()
    for pool in (first, second, first):
        pool.size(replace(make_config().cluster, executor=ExecutorKind.ray))
    first.close()
    first.close()
    assert not ended
    second.close()
    assert ended == [True]
