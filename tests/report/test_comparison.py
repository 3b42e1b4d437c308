"""Reading the runs of an evaluation or a sweep, and the tables of them; the page is in test_comparison_page.py."""

import csv
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.mathtext import MathTextParser
from PIL import Image
from scipy import stats

from fresco_dist import report
from fresco_dist.config import InputError
from fresco_dist.report.comparison import read_comparison
from fresco_dist.report.comparison_table import mean_rows, notes, readable, run_rows, worker_s
from fresco_dist.report.means import average
from fresco_dist.report.plane import comparison_points, curves

METHODS = ("fresco", "multi_diffusion", "super&gen")


def make_run(folder: Path, metrics: dict[str, float], status: str = "done", **changes) -> None:
    """A run folder without a video: four workers that were busy for 10 s each."""
    config = {"seed": 0, "prompt": f"water {folder.name}", "image": f"/pictures/{folder.name}.png"}
    config |= {"video": {"fps": 8}, "fusion": {"method": folder.parent.name}}
    run = {"status": status, "config": config, "work": 12.5, "num_workers": 4, "schedule": {"lower_bound_s": 10.0}}
    run |= {"starts": [{"stored_steps": {}, "forwards_left": 30}], "latents_sha256": "a" * 64}
    run |= {"metrics": metrics} if status == "done" else {"error": "it\nburned"}
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(run | changes))


def write_manifest(folder: Path, methods=METHODS, pictures=(), left_out=None, reference="fresco") -> None:
    manifest = {"dataset": "/data", "compare": "table2", "reference": reference, "left_out": left_out or {}}
    manifest |= {"methods": {name: [] for name in methods}, "pictures": {name: {} for name in pictures}}
    manifest["configs"] = {name: {} for name in methods}
    (folder / "evaluation.json").write_text(json.dumps(manifest))


def sharpness_of(num: int) -> np.ndarray:
    """By method and picture: pictures differ far more than methods."""
    rng = np.random.default_rng(0)
    return 1000 * rng.exponential(10, num) + np.outer([0.0, 50.0, -200.0], rng.exponential(1, num))


@pytest.fixture
def evaluation(tmp_path) -> Path:
    """Three methods on 24 pictures, of which method 1 lacks one and fails at another, and a row that is none."""
    names = [f"picture_{i}" for i in range(24)]
    sharpness = sharpness_of(24)
    for m, method in enumerate(METHODS):
        for i, name in enumerate(names):
            if (m, i) != (1, 22):
                status = "failed" if (m, i) == (1, 23) else "done"
                make_run(tmp_path / method / name, {"sharpness": sharpness[m, i], "seam_energy": 1.0}, status)
    write_manifest(tmp_path, pictures=names, left_out={"row 7": "mural.png cannot be read"})
    return tmp_path


def change(path: Path, **changes) -> None:
    path = path / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_comparison_has_the_done_runs_of_the_evaluations_methods_and_pictures(evaluation):
    make_run(evaluation / "fresco" / "of_another_data_set", {})
    make_run(evaluation / "gone" / "picture_0", {})
    found = read_comparison(evaluation)
    assert (found.folder, found.reference, list(found.runs)) == (evaluation, "fresco", list(METHODS))
    assert [len(done) for done in found.runs.values()] == [24, 22, 24]
    assert found.complete == [f"picture_{i}" for i in range(22)]
    assert found.left_out == {"row 7": "mural.png cannot be read", "multi_diffusion/picture_23": "it\nburned"}
    assert found.runs["super&gen"]["picture_3"].folder == evaluation / "super&gen" / "picture_3"


def test_comparison_of_some_methods_is_in_their_order_with_the_reference_among_them(evaluation):
    found = read_comparison(evaluation, ["super&gen", "fresco"])
    assert (list(found.runs), found.reference) == (["super&gen", "fresco"], "fresco")
    assert len(found.complete) == 24 and found.left_out == {"row 7": "mural.png cannot be read"}
    assert read_comparison(evaluation, ["super&gen", "multi_diffusion"]).reference == "super&gen"
    with pytest.raises(InputError, match="method must be one of fresco, multi_diffusion, super&gen; got what"):
        read_comparison(evaluation, ["fresco", "what"])


def test_comparison_has_no_run_of_other_settings_or_elsewhere(evaluation):
    """What an earlier start has left, with another seed or text, and a copy of a run that somebody keeps below."""
    (evaluation / "kept" / METHODS[0]).mkdir(parents=True)
    shutil.copytree(evaluation / METHODS[0] / "picture_3", evaluation / "kept" / METHODS[0] / "picture_3")
    (evaluation / "kept" / "run.json").write_text("{")
    assert read_comparison(evaluation).runs[METHODS[0]]["picture_3"].folder == evaluation / METHODS[0] / "picture_3"
    manifest = json.loads((evaluation / "evaluation.json").read_text())
    manifest["pictures"]["picture_3"] = {"prompt": "water picture_3", "image": "/pictures/picture_3.png"}
    manifest["pictures"]["picture_3"]["fusion.detail"] = 2.0  # of another recipe: this one has not the key
    manifest["pictures"]["picture_4"] = {"prompt": "fire"}
    manifest["configs"][METHODS[0]] = {"seed": 0, "prompt": None, "fusion": {"method": METHODS[0]}, "metrics": False}
    manifest["configs"][METHODS[2]] = {"seed": 1}
    manifest["pictures"] = {name: {"prompt": f"water {name}"} | own for name, own in manifest["pictures"].items()}
    (evaluation / "evaluation.json").write_text(json.dumps(manifest))
    found = read_comparison(evaluation).runs
    assert "picture_3" in found[METHODS[0]] and "picture_4" not in found[METHODS[0]] and len(found[METHODS[0]]) == 23
    assert found[METHODS[2]] == {}


@pytest.mark.parametrize("text", ["{", "[]", '{"methods": {}}'])
def test_comparison_with_a_broken_manifest_is_refused(evaluation, text):
    (evaluation / "evaluation.json").write_text(text)
    with pytest.raises(InputError, match="evaluation.json cannot be read"):
        read_comparison(evaluation)


def test_comparison_of_a_sweep_tells_its_runs_apart_by_their_settings(tmp_path):
    number = 0
    for image in ("a", "b"):
        for fusion in ({"method": "fresco", "cutoff": 0.0}, {"method": "fresco", "cutoff": 0.5}, {"method": "spot"}):
            config = {"seed": 0, "image": f"/x/{image}.png", "prompt": image, "video": {"fps": 8}, "fusion": fusion}
            status = "failed" if number == 5 else "done"
            make_run(tmp_path / str(number), {"sharpness": float(number)}, status, config=config)
            number += 1
    found = read_comparison(tmp_path)
    assert {method: list(done) for method, done in found.runs.items()} == {
        "fresco cutoff=0.0": ["a", "b"], "fresco cutoff=0.5": ["a", "b"], "spot": ["a"],
    }  # fmt: skip
    assert (found.reference, found.pictures, found.complete) == ("fresco cutoff=0.0", ("a", "b"), ["a"])
    assert found.left_out == {"spot/b": "it\nburned"}
    assert "| fresco cutoff=0.5 | 1 | 1.000 |" in (report.write_comparison(tmp_path) / "comparison.md").read_text()
    make_run(tmp_path / "9", {}, config=json.loads((tmp_path / "0" / "run.json").read_text())["config"])
    with pytest.raises(InputError, match="is one more run of fresco cutoff=0.0 on a. Remove one of them"):
        read_comparison(tmp_path)


def test_comparison_of_a_sweep_with_no_run_that_is_done_is_refused(tmp_path):
    make_run(tmp_path / "0", {}, status="failed")
    with pytest.raises(InputError, match="must have runs that are done"):
        read_comparison(tmp_path)


def test_table_has_means_and_paired_differences_over_the_pictures_that_all_have(evaluation):
    rows = mean_rows(read_comparison(evaluation))
    values = sharpness_of(24)[:, :22]
    assert [(row["method"], row["n"]) for row in rows] == [(method, 22) for method in METHODS]
    for m, row in enumerate(rows):
        low, high = stats.ttest_1samp(values[m], 0).confidence_interval()
        assert row["sharpness"] == pytest.approx(values[m].mean())
        assert row["sharpness_half_width"] == pytest.approx((high - low) / 2)
        keys = [f"sharpness_difference{end}" for end in ("", "_low", "_high")]
        if not m:
            assert [row[key] for key in keys] == [None] * 3
            continue
        differences = values[m] - values[0]
        interval = stats.bootstrap((differences,), np.mean, n_resamples=40_000, rng=0).confidence_interval
        noise = 0.03 * (interval.high - interval.low)
        assert [row[key] for key in keys[1:]] == pytest.approx(list(interval), abs=noise)
        assert row[keys[0]] == pytest.approx(differences.mean())
        assert row["sharpness_half_width"] > 50 * (row[keys[2]] - row[keys[1]])  # the pictures' own differences are out
    assert rows[0]["seam_energy"] == 1.0 and rows[1]["seam_energy_difference_high"] == 0.0
    assert (rows[0]["work"], rows[0]["worker_s"], rows[0]["worker_s_n"]) == (12.5, 40.0, 22)


def test_table_has_a_metric_of_the_pictures_where_every_method_has_it_and_says_so(evaluation):
    change(evaluation / "fresco" / "picture_1", metrics={"sharpness": 5.0})
    change(evaluation / "fresco" / "picture_2", metrics={"sharpness": math.nan, "seam_energy": 1.0})
    comparison = read_comparison(evaluation)
    rows, sharpness = mean_rows(comparison), sharpness_of(24)
    others = [i for i in range(22) if i != 2]
    assert [row["sharpness_n"] for row in rows] == [21] * 3 and rows[0]["seam_energy_n"] == 21
    assert rows[2]["sharpness"] == pytest.approx(sharpness[2, others].mean())
    sharpness[0, 1] = 5.0
    expected = (sharpness[2, others] - sharpness[0, others]).mean()
    assert rows[2]["sharpness_difference"] == pytest.approx(expected)
    assert "sharpness is of the 21 pictures on which every method has it." in notes(comparison)
    assert readable(rows)[0][0]["sharpness"].endswith(" (21)")
    for i in range(24):
        change(evaluation / "fresco" / f"picture_{i}", metrics={"seam_energy": 1.0})
    comparison = read_comparison(evaluation)
    assert "sharpness" not in mean_rows(comparison)[0] and mean_rows(comparison)[0]["seam_energy_n"] == 22
    assert "sharpness is left out: no picture has it of every method." in notes(comparison)


def test_table_takes_seconds_of_pictures_that_no_method_has_resumed(evaluation):
    change(evaluation / "fresco" / "picture_0", starts=[{"stored_steps": {}}] * 2)
    change(evaluation / "fresco" / "picture_1", starts=[{"stored_steps": {"level 1": 3}}])
    change(evaluation / "fresco" / "picture_2", schedule={"lower_bound_s": 32.0})
    comparison = read_comparison(evaluation)
    assert worker_s(comparison.runs["fresco"]["picture_0"]) == 40  # began anew
    assert worker_s(comparison.runs["fresco"]["picture_1"]) is None
    rows = mean_rows(comparison)
    assert [row["worker_s_n"] for row in rows] == [21] * 3  # of the same pictures
    assert rows[0]["worker_s"] == pytest.approx(40 + 88 / 21)
    means, _ = readable(rows)
    assert [row["worker_s"] for row in means] == ["44.19 (21)", "40.00 (21)", "40.00 (21)"]


def test_table_for_people_rounds_to_what_is_known():
    def shown(mean, spread, difference, low, high):
        row = {"method": "a", "n": 9, "m": mean, "m_half_width": spread, "m_difference": difference}
        row |= {"m_difference_low": low, "m_difference_high": high, "m_n": 9}
        row |= {"work": 1, "worker_s": None, "worker_s_n": 0}
        means, differences = readable([row])
        return means[0]["m"], differences[0]["m"]

    assert shown(17912.4, 312.4, -1.234, -2.01, -0.46) == ("17912 ± 312", "-1.23 [-2.01, -0.46]")
    assert shown(0.60349, 0.01234, 0.00004, -0.02, 0.02) == ("0.603 ± 0.012", "0.000 [-0.020, 0.020]")
    assert shown(3.5, 4e-16, 0.0, 0.0, 0.0) == ("3.500 ± 0", "0 [0, 0]")
    assert shown(123456.0, None, -0.5, None, None) == ("123456", "-0.5000")
    assert shown(99.96, 0.0996, -0.00001, -0.03, 0.03)[1] == "0.000 [-0.030, 0.030]"  # no minus zero


def test_notes_say_what_is_left_out_and_why_a_line_each(evaluation):
    lines = notes(read_comparison(evaluation))
    assert lines[0] == "22 of 24 pictures: those that every method has done."
    assert lines[-3:] == [
        "Runs that are not there yet: 1.",
        "Left out: row 7: mural.png cannot be read",
        "Left out: multi_diffusion/picture_23: it burned",
    ]
    assert not any("too narrow" in line for line in lines)
    for i in range(3):
        (evaluation / "fresco" / f"picture_{i}" / "run.json").unlink()
    assert "Bootstrap intervals of fewer than 20 pictures are too narrow." in notes(read_comparison(evaluation))


def test_comparison_report_has_all_products_also_when_it_is_written_again_as_typed(evaluation):
    folder = report.write_comparison(evaluation)
    names = ["comparison.csv", "comparison.html", "comparison.md", "comparison.tex", "runs.csv"]
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert sorted(before) == names and folder == evaluation / "report"
    done = subprocess.run([sys.executable, "-m", "fresco_dist.report", evaluation], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [str(folder / name) for name in names]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert sorted(path.name for path in evaluation.iterdir()) == sorted(["evaluation.json", *METHODS, "report"])
    with (folder / "comparison.csv").open() as file:
        (row, *_) = csv.DictReader(file)
    assert float(row["sharpness"]) == mean_rows(read_comparison(evaluation))[0]["sharpness"]
    with (folder / "runs.csv").open() as file:
        runs = list(csv.DictReader(file))
    assert len(runs) == 24 + 22 + 24
    assert list(runs[0]) == ["method", "picture", "sharpness", "seam_energy", "work", "worker_s", "latents_sha256"]
    assert float(runs[30]["sharpness"]) in sharpness_of(24)[1]
    markdown = (folder / "comparison.md").read_text()
    assert markdown.startswith(
        "| method | n | sharpness | seam_energy | work | worker_s |\n|---|---|---|---|---|---|\n"
    )
    assert re.search(r"\nDifferences to fresco:\n\n\| method \| n \| sharpness \| seam_energy \|\n", markdown)
    assert len(re.findall(r"^\| super&gen \| 22 \| -\d+ \[-\d+, -\d+\] \| 0 \[0, 0\] \|$", markdown, re.M)) == 1
    assert "\n- Left out: row 7: mural.png cannot be read\n" in markdown


def test_latex_table_has_equal_rows_of_valid_formulas_and_escapes_names(evaluation):
    text = (report.write_comparison(evaluation) / "comparison.tex").read_text()
    lines = text.splitlines()
    begin = lines.index(r"\begin{tabular}{lrrrrr}")
    assert all(line.startswith("% ") for line in lines[:begin]) and "% Runs that are not there yet: 1." in lines[:begin]
    assert lines[begin + 1] == r"\toprule"
    assert lines[-2:] == [r"\bottomrule", r"\end{tabular}"]
    rows = [line for line in lines if line.endswith(r"\\") and "multicolumn" not in line]
    assert len(rows) == 1 + 3 + 2
    for row in rows:
        assert len(re.findall(r"(?<!\\)&", row)) == 5
    for formula in re.findall(r"\$[^$]*\$", text):
        MathTextParser("path").parse(formula)  # raises on what TeX would not take
    assert r"multi\_diffusion & $22$ & $" in text and r"super\&gen & $22$" in text and "seam energy" in text
    assert r" \pm " in text and not re.search(r"(?<!\\)_", text.partition("tabular")[2])
    assert r"\multicolumn{6}{l}{difference to fresco} \\" in text


def test_metrics_measured_elsewhere_join_the_tables(evaluation):
    extra = {
        method: {f"picture_{i}": {"motion_smoothness": 0.9 + m / 100} for i in range(24)}
        for m, method in enumerate(METHODS)
    }
    extra["unknown"] = {}
    folder = report.write_comparison(evaluation, extra)
    with (folder / "comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["motion_smoothness"]) for row in rows] == pytest.approx([0.9, 0.91, 0.92])
    assert float(rows[2]["motion_smoothness_difference"]) == pytest.approx(0.02)
    assert "motion_smoothness" in (folder / "runs.csv").read_text().splitlines()[0]


def test_comparison_report_of_few_runs_is_short_but_whole(evaluation, tmp_path_factory):
    for picture in range(24):
        for method in METHODS[1:]:
            (evaluation / method / f"picture_{picture}" / "run.json").unlink(missing_ok=True)
    folder = report.write_comparison(evaluation)  # no picture has all methods
    assert (folder / "comparison.csv").read_text().splitlines()[1] == "fresco,0,,,0"
    assert "0 of 24 pictures" in (folder / "comparison.md").read_text()
    one = tmp_path_factory.mktemp("one")
    for method in METHODS:
        make_run(one / method / "mural", {"sharpness": 3.0 + len(method)})
    write_manifest(one, pictures=["mural"])
    rows = mean_rows(read_comparison(one))  # a difference of one picture has no interval
    assert (rows[1]["sharpness_difference"], rows[1]["sharpness_half_width"], rows[1]["sharpness_difference_low"]) == (
        9.0, None, None,
    )  # fmt: skip
    assert "| multi_diffusion | 1 | 9.000 |" in (report.write_comparison(one) / "comparison.md").read_text()
    alone = read_comparison(one, ["super&gen"])
    assert readable(mean_rows(alone))[1] == [] and len(run_rows(alone)) == 1


def test_plane_of_a_comparison_names_its_methods_or_joins_the_strengths_of_one(evaluation, tmp_path_factory):
    points = comparison_points(read_comparison(evaluation))
    assert len(points) == 66 and list(curves(average(points))) == [f"method {method}" for method in METHODS]
    grid = tmp_path_factory.mktemp("grid")
    methods = [f"strength={s} cutoff={c}" for s in (0.0, 4.0) for c in (0.0, 0.5)]
    for method in methods:
        strength, cutoff = (float(part.partition("=")[2]) for part in method.split())
        for name in ("a", "b"):
            fusion = {"method": "fresco", "prior_strength": strength, "cutoff": cutoff}
            config = {"seed": 0, "image": f"{name}.png", "video": {"fps": 8}, "fusion": fusion}
            metrics = {"sharpness": 9 - strength, "prior_distance": strength + cutoff}
            make_run(grid / method / name, metrics, config=config)
    write_manifest(grid, methods=methods, pictures=["a", "b"], reference=methods[0])
    found = curves(average(comparison_points(read_comparison(grid))))
    assert {name: [mean.num_runs for mean in curve] for name, curve in found.items()} == {
        "cutoff 0.0": [2, 2], "cutoff 0.5": [2, 2],
    }  # fmt: skip
    for name in ("a", "b"):  # as figure7 has it: windows alone beside the grid
        alone = {"seed": 0, "image": f"{name}.png", "video": {"fps": 8}, "fusion": {"method": "multidiffusion"}}
        make_run(grid / "none" / name, {"sharpness": 9.0, "prior_distance": 5.0}, config=alone)
    write_manifest(grid, methods=["none", *methods], pictures=["a", "b"], reference="none")
    found = curves(average(comparison_points(read_comparison(grid))))
    assert [len(curve) for curve in found.values()] == [1, 2, 2] and "method none" in found
    with Image.open(report.write_comparison(grid) / "plane.png") as picture:
        assert picture.width > 500
