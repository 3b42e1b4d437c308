"""VBench-I2V: videos as it reads them, its result files as tables; the script is tested in test_vbench_script.py.

`vbench_recorded.json` has the files that vbench 0.1.5 wrote, with random weights, for the videos of `recorded`.
"""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import make_picture
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fresco_dist.config import InputError
from fresco_dist.media.pictures import read_image
from fresco_dist.report.__main__ import main as report
from fresco_dist.report.comparison import read_comparison
from fresco_dist.report.vbench import __main__ as vbench
from fresco_dist.report.vbench.exporting import _file_names, export, read_videos
from fresco_dist.report.vbench.results import COLUMNS, read_results, write_tables

REPOSITORY = Path(__file__).parents[2]
RECORDED = json.loads((Path(__file__).parent / "vbench_recorded.json").read_text())
DIMENSIONS = list(COLUMNS.values())
METHODS = ("fresco", "multidiffusion")


def make_evaluation(folder: Path, pictures=("mural", "a sea of names-0"), methods=METHODS) -> Path:
    """Done runs; VBench alone looks into the videos."""
    folder.mkdir()
    manifest = {"methods": methods, "reference": methods[0], "left_out": {}}
    manifest |= {"configs": {method: {} for method in methods}, "pictures": {picture: {} for picture in pictures}}
    (folder / "evaluation.json").write_text(json.dumps(manifest))
    for index, picture in enumerate(pictures):
        image = folder / f"image {index}.png"
        make_picture(12, 8, seed=index).save(image)
        for method in methods:
            run = folder / method / picture
            run.mkdir(parents=True)
            (run / "video.mp4").write_bytes(f"{method}/{picture}".encode())
            config = {"seed": 0, "image": str(image), "fusion": {"method": method}}
            facts = {"status": "done", "config": config, "products": {"video.mp4": f"sha of {method}/{picture}"}}
            (run / "run.json").write_text(json.dumps(facts))
    return folder


def change_run(folder: Path, **changes) -> None:
    path = folder / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def evaluation(tmp_path) -> Path:
    return make_evaluation(tmp_path / "evaluation")


@pytest.fixture
def recorded(tmp_path) -> Path:
    """An export with the results that VBench wrote for it: two methods, two pictures, all six dimensions."""
    out = tmp_path / "recorded"
    for name, content in RECORDED.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(json.dumps(content, indent=4))
    return out


def result_file(out: Path, method: str, dimension: str) -> Path:
    return out / "results" / method / f"{dimension}_eval_results.json"


def prompt_of(video: str) -> str:
    """What VBench takes for the name of the image of a video in its custom mode."""
    return re.sub(r"-\d+$", "", Path(video).stem)


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@given(st.lists(st.text(min_size=1), unique=True, max_size=8))
def test_export_names_are_plain_distinct_and_those_that_vbench_pairs(names):
    names += ["mural", "Mural", "mural-0", "mural.png", "a b", "a_b", ".hidden", "--x", "été", "été" * 300]
    found = _file_names(dict.fromkeys(names))
    assert list(found) == list(dict.fromkeys(names))
    assert len({plain.casefold() for plain in found.values()}) == len(found)
    for plain in found.values():
        assert re.fullmatch(r"[A-Za-z0-9_=][A-Za-z0-9_.=-]*", plain) and len(f"{plain}-0.mp4") < 255
        assert prompt_of(f"{plain}-0.mp4") == plain == os.path.splitext(f"{plain}.png")[0]


def test_export_has_links_to_the_videos_and_pictures_as_rgb(evaluation, tmp_path):
    grey = evaluation / "image 0.png"
    Image.open(grey).convert("LA").save(grey)
    out = tmp_path / "out"
    done = export(read_comparison(evaluation), out)
    assert (done.pictures, done.num_videos, done.linked, done.left_out) == (["mural", "a sea of names-0"], 4, True, [])
    names = {"mural": "mural", "a sea of names-0": "a_sea_of_names-0"}
    videos = {f"videos/{method}/{name}-0.mp4" for method in METHODS for name in names.values()}
    assert files_below(out) == videos | {f"images/{name}.png" for name in names.values()} | {"videos.json"}
    listed = read_videos(out)
    for name, entry in listed.items():
        run = Path(entry["run"])
        assert run == evaluation / entry["method"] / entry["picture"]
        assert (out / "videos" / name).samefile(run / "video.mp4")
        assert entry["sha256"] == f"sha of {entry['method']}/{entry['picture']}"
        given = read_image(Path(json.loads((run / "run.json").read_text())["config"]["image"]))
        with Image.open(out / "images" / entry["image"]) as image:
            assert image.mode == "RGB" and np.array_equal(np.asarray(image), np.asarray(given))
    assert {(entry["method"], entry["picture"]) for entry in listed.values()} == {
        (method, picture) for method in METHODS for picture in names
    }


def test_export_takes_the_pictures_that_all_methods_have_and_says_which_not(evaluation, tmp_path, capsys):
    change_run(evaluation / "fresco" / "mural", status="failed", error="out of memory")
    assert vbench.main(["export", str(evaluation), str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["left out   fresco/mural: out of memory", "left out   mural: not done by fresco"]
    assert lines[2] == "exported   2 videos of 1 pictures (hard links)"
    assert {entry["picture"] for entry in read_videos(tmp_path / "out").values()} == {"a sea of names-0"}
    assert vbench.main(["export", str(evaluation), str(tmp_path / "two"), "--methods", "multidiffusion"]) == 0
    assert len(read_videos(tmp_path / "two")) == 2
    change_run(evaluation / "fresco" / "a sea of names-0", status="failed")
    assert vbench.main(["export", str(evaluation), str(tmp_path / "three")]) == 2
    assert capsys.readouterr().err == (
        f"error: FOLDER must be a comparison with a picture that every method has done; got {evaluation}."
        " Let its runs end, or name the methods that have.\n"
    )


def test_export_of_the_bundled_picture(evaluation, tmp_path):
    for method in METHODS:
        change_run(evaluation / method / "mural", config={"seed": 0, "image": None, "fusion": {"method": method}})
    export(read_comparison(evaluation), tmp_path / "out")
    with Image.open(tmp_path / "out" / "images" / "mural.png") as image:
        assert image.size == read_image(REPOSITORY / "fresco_dist" / "assets" / "fresco.png").size


def test_export_copies_where_links_cannot_be(evaluation, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("another device")))
    done = export(read_comparison(evaluation), tmp_path / "out")
    copy = tmp_path / "out" / "videos" / "fresco" / "mural-0.mp4"
    assert not done.linked and copy.read_text() == "fresco/mural"
    assert not copy.samefile(evaluation / "fresco" / "mural" / "video.mp4")


def test_export_again_keeps_results_and_refuses_other_videos(evaluation, tmp_path, capsys):
    out = tmp_path / "out"
    typed = ["export", str(evaluation), str(out)]
    assert vbench.main(typed) == 0
    (out / "results").mkdir()
    before = files_below(out)
    assert vbench.main(typed) == 0 and (out / "results").is_dir() and files_below(out) == before
    change_run(evaluation / "fresco" / "mural", products={"video.mp4": "sha of a later run"})
    assert vbench.main(typed) == 2 and files_below(out) == before
    message = (
        f"error: OUT must be a new folder, or one with these very videos; got {out}. Name another, or remove it.\n"
    )
    assert capsys.readouterr().err == message


@pytest.mark.parametrize("harm", ["no video", "no image", "two images"])
def test_export_that_fails_leaves_nothing(evaluation, tmp_path, capsys, harm):
    last = evaluation / "multidiffusion" / "a sea of names-0"
    if harm == "no video":
        (last / "video.mp4").unlink()
    elif harm == "no image":
        (evaluation / "image 1.png").write_text("no picture")
    else:
        change_run(last, config={"seed": 0, "image": "other.png", "fusion": {"method": "multidiffusion"}})
    assert vbench.main(["export", str(evaluation), str(tmp_path / "out")]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and len(errors.splitlines()) == 1
    told = {"no video": str(last / "video.mp4"), "no image": "image 1.png", "two images": "other.png"}
    assert told[harm] in errors and "a sea of names-0" in errors
    assert [path.name for path in tmp_path.iterdir()] == ["evaluation"]


def test_import_gives_the_values_of_vbench(recorded):
    values = read_results(recorded)
    assert list(values) == list(METHODS)
    for method in METHODS:
        assert list(values[method]) == ["mural", "a sea of names-0"]
        for dimension in DIMENSIONS:
            mean, videos = json.loads(result_file(recorded, method, dimension).read_text())[dimension]
            own = [found[dimension] for found in values[method].values()]
            scale = 100 if dimension == "imaging_quality" else 1
            assert own == [video["video_results"] / scale for video in videos]
            pairs = [4, 2] if dimension == "subject_consistency" else [1, 1]  # of frames: its mean is over all of them
            assert np.average(own, weights=pairs) == pytest.approx(mean, abs=1e-9)


def test_import_writes_the_columns_of_the_paper(recorded, capsys):
    assert vbench.main(["import", str(recorded)]) == 0
    names = ["vbench.md", "vbench.csv", "vbench_videos.csv"]
    assert capsys.readouterr().out.splitlines() == [str(recorded / name) for name in names]
    lines = (recorded / "vbench.md").read_text().splitlines()
    assert lines[0] == "| method | videos | SC | MS | A | I | ISC | IBC | Avg |" and len(lines) == 2 + len(METHODS)
    with (recorded / "vbench.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row, method in zip(rows, METHODS, strict=True):
        means = [json.loads(result_file(recorded, method, name).read_text())[name][0] for name in DIMENSIONS]
        assert [float(row[column]) for column in COLUMNS] == means
        assert (row["method"], row["videos"]) == (method, "2")
        assert float(row["Avg"]) == pytest.approx(sum(means) / 6, abs=1e-12)
    with (recorded / "vbench_videos.csv").open() as file:
        videos = list(csv.DictReader(file))
    values = read_results(recorded)
    assert [(row["method"], row["picture"]) for row in videos] == [(m, p) for m in values for p in values[m]]
    for row in videos:
        found = values[row["method"]][row["picture"]]
        assert [float(row[column]) for column in COLUMNS] == [found[name] for name in DIMENSIONS]


@pytest.mark.parametrize(
    "scores, average",
    [  # table 5 of arXiv 2603.17555
        ([0.960, 0.987, 0.734, 0.752, 0.990, 0.994], "0.903"),
        ([0.958, 0.990, 0.738, 0.753, 0.991, 0.995], "0.904"),
        ([0.893, 0.984, 0.611, 0.698, 0.987, 0.989], "0.860"),
    ],
)
def test_import_averages_as_the_paper_does(recorded, scores, average):
    for dimension, score in zip(DIMENSIONS, scores):
        path = result_file(recorded, "fresco", dimension)
        _, videos = json.loads(path.read_text())[dimension]
        scale = 100 if dimension == "imaging_quality" else 1
        videos = [video | {"video_results": score * scale} for video in videos]
        path.write_text(json.dumps({dimension: [score, videos]}))
    write_tables(recorded)
    with (recorded / "vbench.csv").open() as file:
        assert f"{float(next(csv.DictReader(file))['Avg']):.3f}" == average


def test_import_without_all_dimensions_says_which_are_missing(recorded, capsys):
    for dimension in ("motion_smoothness", "i2v_background"):
        result_file(recorded, "fresco", dimension).unlink()
    assert vbench.main(["import", str(recorded)]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "no results fresco: motion_smoothness, i2v_background"
    with (recorded / "vbench.csv").open() as file:
        first, second = csv.DictReader(file)
    assert (first["MS"], first["IBC"], first["Avg"]) == ("", "", "") and first["SC"] and second["Avg"]
    assert "motion_smoothness" not in read_results(recorded)["fresco"]["mural"]
    shutil.rmtree(recorded / "results")
    assert vbench.main(["import", str(recorded)]) == 2
    assert f"{recorded} must hold results of VBench; it has none." in capsys.readouterr().err


def test_comparison_takes_the_results_up(recorded, tmp_path, capsys):
    """Columns of the comparison, beside what the runs were measured by, with differences."""
    videos = read_videos(recorded)
    pictures = tuple(dict.fromkeys(entry["picture"] for entry in videos.values()))
    methods = tuple(dict.fromkeys(entry["method"] for entry in videos.values()))
    folder = make_evaluation(tmp_path / "same", pictures, methods)
    for method in methods:
        for picture in pictures:
            (sha256,) = {v["sha256"] for v in videos.values() if (v["method"], v["picture"]) == (method, picture)}
            change_run(folder / method / picture, products={"video.mp4": sha256})
            change_run(folder / method / picture, metrics={"sharpness": 1.0}, canvas={"width": 12, "height": 8})
            config = json.loads((folder / method / picture / "run.json").read_text())["config"]
            change_run(folder / method / picture, config=config | {"video": {"fps": 8}}, num_workers=1)
    assert report(["--vbench", str(recorded), str(folder)]) == 0
    with (folder / "report" / "runs.csv").open() as file:
        rows = {(row["method"], row["picture"]): row for row in csv.DictReader(file)}
    values = read_results(recorded)
    for (method, picture), row in rows.items():
        six = [values[method][picture][dimension] for dimension in COLUMNS.values()]
        assert [float(row[column]) for column in COLUMNS] == pytest.approx(six)
        assert float(row["Avg"]) == pytest.approx(sum(six) / 6)
    text = (folder / "report" / "comparison.md").read_text()
    assert "| sharpness | SC | MS | A | I | ISC | IBC | Avg |" in text and "Differences to" in text
    change_run(folder / METHODS[0] / pictures[0], products={"video.mp4": "another"})  # it has run again since
    assert report(["--vbench", str(recorded), str(folder)]) == 2
    assert "is another video than that of" in capsys.readouterr().err


def test_import_of_a_folder_that_is_no_export_is_refused(tmp_path):
    command = [sys.executable, "-m", "fresco_dist.report.vbench", "import", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "") and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(
        "error: OUT must be a folder that `python -m fresco_dist.report.vbench export` wrote;"
    )


@pytest.mark.parametrize(
    "harm, told",
    [
        ("foreign", "has fresco/other-0.mp4, which is no video of this"),
        ("of another method", "has multidiffusion/mural-0.mp4, which is no video of this"),
        ("fewer", "lacks fresco/a_sea_of_names-0-0.mp4"),
        ("twice", "has fresco/mural-0.mp4 twice"),
        ("nan", "has values that are no finite numbers"),
        ("scale", "outside its values"),
        ("of another video", "is of another fresco/mural-0.mp4: its SHA-256 is not that in videos.json"),
        ("cut", "cannot be read (JSONDecodeError"),
        ("no list", "cannot be read (FileNotFoundError"),
    ],
)
def test_import_refuses_results_that_are_not_of_these_videos(recorded, harm, told):
    path = result_file(recorded, "fresco", "imaging_quality")
    full_info = path.with_name("imaging_quality_full_info.json")
    mean, videos = json.loads(path.read_text())["imaging_quality"]
    if harm in ("foreign", "of another method"):
        name = "fresco/other-0.mp4" if harm == "foreign" else "multidiffusion/mural-0.mp4"
        videos[0]["video_path"] = f"/somewhere/videos/{name}"
    elif harm == "fewer":
        mean = videos.pop()["video_results"] and videos[0]["video_results"] / 100
    elif harm == "twice":
        videos.append(videos[0])
    elif harm == "nan":
        videos[0]["video_results"] = float("nan")
    elif harm == "scale":
        mean *= 100
    elif harm == "of another video":
        full_info.write_text(full_info.read_text().replace('"sha256": "', '"sha256": "0', 1))
    elif harm == "no list":
        full_info.unlink()
    content = json.dumps({"imaging_quality": [mean, videos]})
    path.write_text(content[:-9] if harm == "cut" else content)
    with pytest.raises(InputError) as error:
        write_tables(recorded)
    assert str(error.value).startswith(f"{path} must be VBench's results of these videos; it ") and told in str(
        error.value
    )
    assert not (recorded / "vbench.md").exists()


def test_export_of_what_the_reader_of_vbench_does_not_decode_is_refused(evaluation, tmp_path):
    method, picture = METHODS[0], sorted(path.name for path in (evaluation / METHODS[0]).iterdir())[0]
    run = json.loads((evaluation / method / picture / "run.json").read_text())
    change_run(evaluation / method / picture, config=run["config"] | {"video": {"format": "av1"}})
    with pytest.raises(InputError, match=f"video.format of {method} on {picture} must be h264, .*; got av1"):
        export(read_comparison(evaluation), tmp_path / "out")
    assert not (tmp_path / "out").exists()
