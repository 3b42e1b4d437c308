"""Runs whose activity map SAM 3 makes: the same bits everywhere, made once, kept, and shown."""

import json
from signal import SIGKILL

import numpy as np
import pytest
from conftest import make_picture, run_json
from faults import inject, sends  # noqa: F401 (fixture)
from PIL import Image
from sam3_model import OVERRIDES, make_sam3

from fresco_dist.jobs import keeper


@pytest.fixture(scope="module")
def sam3(tmp_path_factory) -> list[str]:
    """Overrides of a regional run for which the map is made."""
    path = make_sam3(tmp_path_factory.mktemp("sam3"))
    cutoffs = ["fusion.cutoff_active=0", "fusion.cutoff_background=1", "fusion.prior_strength=4"]
    return ["fusion=regional", *cutoffs, "fusion.activity_map=sam3", f"sam3.path={path}", *OVERRIDES]


def segmented(folder) -> int:
    """How many pictures the last run in a folder has segmented."""
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    return sum(event.get("cat") == "segment" for event in events)


def test_map_that_is_made_gives_the_bits_that_it_gives_as_a_picture(command, folder, tmp_path, sam3):
    done = command(*sam3, "metrics=true")
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    made = run_json(folder)
    assert segmented(folder) == 1
    with Image.open(folder / "activity_map.png") as picture:
        assert picture.size == (96, 48)
        cells = np.asarray(picture.convert("L")).reshape(12, 4, 24, 4)
    assert (cells.min((1, 3)) == cells.max((1, 3))).all()  # every cell is one thing
    assert made["activity"]["active"] == pytest.approx((cells > 0).mean())
    assert 0.05 < made["activity"]["active"] < 0.95
    assert made["activity"]["masks"].keys() == {"person", "vegetation", "vehicles"}
    assert {"activity_map.png", "activity_overlay.png"} <= made["products"].keys()
    as_picture = [*sam3[:4], f"fusion.activity_map={folder / 'activity_map.png'}", "metrics=true"]
    assert command(*as_picture, f"hydra.run.dir={tmp_path / 'given'}").returncode == 0
    given = run_json(tmp_path / "given")
    assert given["latents_sha256"] == made["latents_sha256"]
    assert given["metrics"] == made["metrics"] and "prior_distance_active" in made["metrics"]
    assert command("fusion=fresco", f"hydra.run.dir={tmp_path / 'plain'}").returncode == 0
    assert run_json(tmp_path / "plain")["latents_sha256"] != made["latents_sha256"]


def test_overlay_shows_the_picture_in_colour_where_it_is_active(command, folder, sam3):
    assert command(*sam3).returncode == 0
    shown = np.asarray(Image.open(folder / "activity_overlay.png")).astype(int)
    active = np.asarray(Image.open(folder / "activity_map.png").convert("L")) > 0
    picture = np.asarray(make_picture(96, 48)).astype(int)
    assert shown.shape == picture.shape
    assert (shown[~active] <= picture[~active]).all()
    warmth = (shown - picture)[..., 0] - (shown - picture)[..., 2]
    assert warmth[active].mean() > warmth[~active].mean() + 50


def test_map_has_the_same_bits_on_ray_in_both_modes_and_after_a_loss(
    command, ray_command, folder, tmp_path, inject, sam3  # noqa: F811
):  # fmt: skip
    assert command(*sam3).returncode == 0
    expected = run_json(folder)["latents_sha256"]
    on_ray = [*sam3, "cluster.num_workers=3"]
    done = ray_command(*on_ray, "dispatch.mode=allreduce", f"hydra.run.dir={tmp_path / 'allreduce'}")
    assert done.returncode == 0 and run_json(tmp_path / "allreduce")["latents_sha256"] == expected, done.stderr
    inject(sends(SIGKILL), "segment", first=1)
    done = ray_command(*on_ray, f"hydra.run.dir={tmp_path / 'killed'}")
    assert done.returncode == 0 and run_json(tmp_path / "killed")["latents_sha256"] == expected, done.stderr
    assert "died" in done.stdout


def test_map_is_stored_and_taken_up(command, folder, sam3, monkeypatch):
    monkeypatch.setattr(keeper, "SHARE", 1e9)
    assert command(*sam3, "sampler.stop_after=1").returncode == 0
    assert segmented(folder) == 1 and (folder / "activity_map.png").is_file()
    shown = (folder / "activity_map.png").read_bytes()
    (folder / "activity_map.png").unlink()
    done = command(*sam3)
    assert done.returncode == 0 and "stored    step 1 of " in done.stdout, done.stdout
    assert segmented(folder) == 0
    assert (folder / "activity_map.png").read_bytes() == shown
    assert run_json(folder)["activity"]["active"] > 0
    stopped = run_json(folder)["latents_sha256"]
    assert command(*sam3, f"hydra.run.dir={folder.parent / 'whole'}").returncode == 0
    assert run_json(folder.parent / "whole")["latents_sha256"] == stopped


def test_map_is_made_once_for_a_sweep_over_strengths_and_measured_by_without_regions(command, tmp_path, sam3):
    sweep = tmp_path / "sweep"
    done = command(
        *[override for override in sam3 if not override.startswith(("fusion=", "fusion.cutoff", "fusion.prior"))],
        "fusion=fresco,multidiffusion", "metrics=true", f"hydra.sweep.dir={sweep}", flags=("-m",),
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    events = [json.loads((sweep / point / "trace.json").read_text())["traceEvents"] for point in ("0", "1")]
    (first,), (second,) = ([event for event in of if event.get("cat") == "segment"] for of in events)
    assert first["dur"] == second["dur"] and first["args"] == second["args"]  # it is the same task
    for point in ("0", "1"):
        assert "prior_distance_active" in run_json(sweep / point)["metrics"]
        assert (sweep / point / "activity_overlay.png").is_file()


def test_map_that_tells_nothing_apart_is_said(command, folder, tmp_path, sam3):
    done = command(*sam3, "sam3.score_threshold=1")
    assert done.returncode == 0
    assert "note      the activity map that SAM 3 has made is dark everywhere" in done.stdout
    assert "(masks: person 0, vegetation 0, vehicles 0)" in done.stdout
    for value, word in ((255, "light"), (0, "dark")):
        Image.new("L", (96, 48), value).save(tmp_path / "flat.png")
        done = command(*sam3[:4], f"fusion.activity_map={tmp_path / 'flat.png'}", "plan_only=true")
        assert done.returncode == 0 and f"flat.png is {word} everywhere" in done.stdout, done.stdout


def test_bad_directory_is_refused_before_anything_is_loaded(command, folder, tmp_path, sam3):
    done = command(*sam3, f"sam3.path={tmp_path}")
    assert done.returncode == 2 and done.stderr.startswith("error: sam3.path must be a directory with config.json")
    assert not (folder / "run.json").exists()
