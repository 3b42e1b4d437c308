"""The report of a sweep: table, plane, contact sheets; the page is tested in test_report_page.py."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import make_picture
from PIL import Image

from fresco_dist import report
from fresco_dist.media.video import write_video
from fresco_dist.report import plane
from fresco_dist.report.means import average, by_picture
from fresco_dist.report.plane import curves, pareto_front, write_plane
from fresco_dist.report.points import read_points
from fresco_dist.report.table import rows

FPS, FRAMES, SIZE = 8, 24, (96, 48)


def make_run(folder: Path, *, strength: float, cutoff: float = 0.0, status: str = "done", **changes) -> None:
    """A run folder as the command leaves it. The clips count their frames in grey, and differ in colour."""
    folder.mkdir(parents=True)
    config = {"seed": 0, "prompt": "water", "video": {"fps": FPS}, "metrics": True, "plan_only": False}
    config |= {"fusion": {"method": "fresco", "prior_strength": strength, "cutoff": cutoff}}
    run: dict = {"status": status, "config": config | changes}
    if status == "done":
        run["metrics"] = {"sharpness": 100 - strength, "temporal_difference": 9 - strength, "prior_distance": 3.5}
        run |= {"timings_s": {"total": 12.25, "steps": 7.0}, "latents_sha256": f"{strength:064.1f}"}
        frames = np.zeros((FRAMES, SIZE[1], SIZE[0], 3), dtype=np.uint8)
        frames += (np.arange(FRAMES, dtype=np.uint8) * 10)[:, None, None, None]
        frames[..., 0] = int(20 * strength) % 256
        write_video(folder / "video.mp4", frames, SIZE, FPS)
        make_picture(60, 40, seed=int(strength)).save(folder / "contact_sheet.png")
    (folder / "run.json").write_text(json.dumps(run))


@pytest.fixture
def sweep(tmp_path) -> Path:
    """Strengths 0, 1, 4 at two cutoffs, and a run that failed."""
    path = tmp_path / "sweep"
    for index, (cutoff, strength) in enumerate((c, s) for c in (0.0, 0.5) for s in (0.0, 1.0, 4.0)):
        make_run(path / str(index), strength=strength, cutoff=cutoff)
    make_run(path / "10", strength=9.0, status="failed")
    return path


def test_label_tells_no_key_that_a_recipe_has_not(tmp_path):
    make_run(tmp_path / "0", strength=1.0)
    make_run(tmp_path / "1", strength=1.0, fusion={"method": "supergen", "start": 0.3})
    labels = [point.label for point in read_points(tmp_path)]
    assert labels == ["method fresco, prior_strength 1, cutoff 0", "method supergen, start 0.3"]


def test_report_table_has_a_row_per_run_with_what_varies(sweep):
    folder = report.write(sweep)
    with (folder / "table.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["run"] for row in table] == ["0", "1", "2", "3", "4", "5", "10"]
    settings = [key for key in table[0] if "." in key]
    assert settings == ["fusion.prior_strength", "fusion.cutoff"]  # not what all runs share
    assert table[4] == {
        "run": "4", "status": "done", "fusion.prior_strength": "1.0", "fusion.cutoff": "0.5", "sharpness": "99.0",
        "temporal_difference": "8.0", "prior_distance": "3.5", "total_s": "12.25", "steps_s": "7.0",
        "latents_sha256": f"{1:064.1f}",
    }  # fmt: skip
    assert (table[6]["status"], table[6]["sharpness"], table[6]["total_s"]) == ("failed", "", "")
    lines = (folder / "table.md").read_text().splitlines()
    assert lines[0].startswith("| run | status | fusion.prior_strength | fusion.cutoff | sharpness |")
    assert lines[1] == "|" + "---|" * 10 and len(lines) == 9
    assert lines[6] == "| 4 | done | 1 | 0.5 | 99 | 8 | 3.5 | 12.25 | 7 | 00000000 |"


def test_report_table_cell_keeps_the_markdown_whole(tmp_path):
    make_run(tmp_path / "0", strength=0.0, prompt="a | b\nc")
    make_run(tmp_path / "1", strength=0.0, prompt="d")
    report.write(tmp_path)
    assert "| a \\| b c |" in (tmp_path / "report" / "table.md").read_text()


def test_report_points_join_by_strength(sweep):
    found = curves([point for point in read_points(sweep) if point.status == "done"])
    assert {name: [point.name for point in curve] for name, curve in found.items()} == {
        "cutoff 0.0": ["0", "1", "2"],
        "cutoff 0.5": ["3", "4", "5"],
    }


@pytest.fixture
def pictures(tmp_path) -> Path:
    """Strengths 0 and 4 on three pictures with a prompt each; sharpness 11, 22, 33 with 0 and 1, 2, 6 less with 4."""
    path = tmp_path / "pictures"
    for index, (image, strength) in enumerate((i, s) for i in range(3) for s in (0.0, 4.0)):
        folder = path / str(index)
        make_run(folder, strength=strength, image=f"/somewhere/{image}.png", prompt=f"water {image}")
        run = json.loads((folder / "run.json").read_text())
        run["metrics"]["sharpness"] = 11.0 * (image + 1) - (strength > 0) * (1.0, 2.0, 6.0)[image]
        (folder / "run.json").write_text(json.dumps(run))
    return path


def test_report_points_are_told_apart_by_picture_not_by_its_prompt(pictures):
    points = read_points(pictures)
    assert set(points[0].settings) == {"image", "fusion.prior_strength"}
    assert points[3].label == "prior_strength 4, image 1"
    make_run(pictures / "9", strength=0.0, image="/somewhere/0.png", prompt="another")  # now it is a setting
    assert set(read_points(pictures)[0].settings) == {"prompt", "image", "fusion.prior_strength"}


def test_report_means_are_over_the_pictures_of_a_setting_with_their_spread(pictures):
    points = read_points(pictures)
    del points[1].metrics["prior_distance"]
    without, with_4 = average(points)
    assert (without.settings, without.num_runs) == ({"fusion.prior_strength": 0.0}, 3)
    assert (without.metrics["sharpness"], without.spread["sharpness"]) == (22.0, 11.0)
    assert with_4.metrics["sharpness"] == pytest.approx(19.0) and "prior_distance" not in with_4.metrics
    folder = report.write(pictures)
    with (folder / "means.csv").open() as file:
        table = list(csv.DictReader(file))
    assert len(table) == 2
    assert [table[0][key] for key in ("runs", "sharpness", "sharpness_sd", "prior_distance_sd")] == [
        "3", "22.0", "11.0", "0.0",
    ]  # fmt: skip
    make_run(pictures / "9", strength=0.0, image="/somewhere/9.png")  # a picture that lacks a setting
    report.write(pictures)
    assert (folder / "means.csv").read_text().splitlines()[1].startswith("0.0,3,22.0,")
    shutil.rmtree(pictures / "9")
    text = (folder / "means.md").read_text()
    assert text.startswith("| fusion.prior_strength | runs | sharpness | sharpness_sd | temporal_difference |")
    assert "| 0 | 3 | 22 | 11 |" in text
    assert (folder / "table.md").read_text().splitlines()[5].startswith("| 3 | done | 4 | 1.png | 20 |")
    for number in range(2, 6):
        shutil.rmtree(pictures / str(number))
    report.write(pictures)  # of one picture there is no mean
    assert not (folder / "means.csv").exists() and not (folder / "means.md").exists()


def test_report_plane_compares_the_settings_within_each_picture(pictures, monkeypatch):
    moved = by_picture(read_points(pictures))
    assert [[point.metrics["sharpness"] for point in group] for group in moved] == [
        [21.0, 20.0], [21.5, 19.5], [23.5, 17.5],
    ]  # fmt: skip
    assert list(curves(moved[0])) == list(curves(average(read_points(pictures)))) == [""]
    drawn = np.asarray(Image.open(write_plane(pictures / "plane.png", read_points(pictures))))
    monkeypatch.setattr(plane, "by_picture", lambda points: [[], [], []])
    assert (drawn != np.asarray(Image.open(write_plane(pictures / "plane.png", read_points(pictures))))).any()


def test_report_pareto_front_is_what_no_other_point_beats():
    assert pareto_front([(0, 3), (1, 2), (2, 1), (1, 1), (0, 0)]) == [0, 1, 2]
    assert pareto_front([(1, 1), (1, 1)]) == [0, 1]
    assert pareto_front([(2, 1), (1, 1)]) == [0]
    rng = np.random.default_rng(0)
    values = [tuple(pair) for pair in rng.integers(0, 8, (40, 2))]
    front = {values[i] for i in pareto_front(values)}
    for a, b in values:
        beaten = any(c >= a and d >= b and (c, d) != (a, b) for c, d in values)
        assert ((a, b) in front) != beaten


def _num_drawn(path: Path) -> int:
    """Colours in the picture that are none of the greys."""
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3).astype(int)
    return int((pixels.max(axis=1) - pixels.min(axis=1) > 60).sum())


def test_report_plane_is_drawn_for_the_metrics_there_are(sweep, tmp_path):
    points = [point for point in read_points(sweep) if point.status == "done"]
    path = write_plane(tmp_path / "plane.png", points)
    assert path and _num_drawn(path) > 500
    with Image.open(path) as picture:
        two_planes = picture.width
    for point in points:
        point.metrics["prior_similarity"] = 0.5 + point.metrics["temporal_difference"] / 100
    with Image.open(write_plane(tmp_path / "plane.png", points)) as picture:
        assert picture.width == two_planes  # the similarity in the place of its stand-in
    for point in points:
        point.metrics.clear()
    assert write_plane(tmp_path / "plane.png", points) is None and not (tmp_path / "plane.png").exists()


def test_report_contact_sheets_lie_side_by_side_with_their_colours(sweep):
    folder = report.write(sweep)
    with Image.open(folder / "contact_sheets.png") as picture:
        assert picture.size == (3 * 68, 2 * 66)
        cell = np.asarray(picture)[66 + 18 : 66 + 58, 68:128]  # second row and column: run 4
    assert np.array_equal(cell, np.asarray(make_picture(60, 40, seed=1)))


def test_report_of_a_folder_without_runs_is_refused_in_one_line(tmp_path):
    done = subprocess.run([sys.executable, "-m", "fresco_dist.report", tmp_path], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: SWEEP_FOLDER must be a folder with run folders below it; got {tmp_path}, which has none."
        " Give a folder below multirun/.\n"
    )
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "run.json").write_text("{")
    done = subprocess.run([sys.executable, "-m", "fresco_dist.report", tmp_path], capture_output=True, text=True)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert f"{tmp_path / '0' / 'run.json'} must be the run.json of a run" in done.stderr


def test_report_of_a_sweep_as_typed(command, tmp_path):
    sweep = tmp_path / "sweep"
    done = command(
        "fusion.prior_strength=0,1", "fusion.cutoff=0,1", "metrics=true", f"hydra.sweep.dir={sweep}", flags=("-m",)
    )
    assert done.returncode == 0, done.stderr
    made = subprocess.run([sys.executable, "-m", "fresco_dist.report", sweep], capture_output=True, text=True)
    assert (made.returncode, made.stderr) == (0, "")
    names = ["contact_sheets.png", "index.html", "plane.png", "table.csv", "table.md"]
    assert made.stdout.splitlines() == [str(sweep / "report" / name) for name in names]
    points = read_points(sweep)
    table = {(row["fusion.prior_strength"], row["fusion.cutoff"]): row for row in rows(points)}
    assert len(table) == 4
    without = [row for (strength, _), row in table.items() if strength == 0]  # the cutoff of nothing is nothing
    assert len({row["latents_sha256"] for row in without}) == 1 and len({row["sharpness"] for row in without}) == 1
    assert len({row["latents_sha256"] for row in table.values()}) == 3
    assert table[1, 0]["prior_distance"] != table[1, 1]["prior_distance"]
