"""The user study: pairs, what its page gives away, votes and their tally; the page's use is in test_study_page.py."""

import base64
import csv
import json
import random
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
from conftest import make_picture
from scipy.stats import binomtest
from test_report import make_run

from fresco_dist.config import InputError
from fresco_dist.report import page
from fresco_dist.report.study import __main__ as study
from fresco_dist.report.study.votes import read_key, sign_test, wilson
from fresco_dist.report.study.writing import QUESTIONS, draw_pairs, write_study

METHODS = ("demofusion", "multidiffusion", "regional")


def make_evaluation(folder: Path, methods=METHODS, num_pictures: int = 3) -> Path:
    """An evaluation's folder; every method's videos have a colour of their own."""
    pictures = [f"mural{i}" for i in range(num_pictures)]
    for i in range(num_pictures):
        folder.mkdir(exist_ok=True)
        make_picture(60, 30, seed=i).save(folder / f"mural{i}.png")
    for number, method in enumerate(methods):
        for i, picture in enumerate(pictures):
            run, image = folder / method / picture, str(folder / f"mural{i}.png")
            make_run(run, strength=float(number), image=image, fusion={"method": method})
    manifest = {"methods": list(methods), "reference": methods[0], "left_out": {}}
    manifest |= {"configs": {method: {} for method in methods}, "pictures": {picture: {} for picture in pictures}}
    (folder / "evaluation.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory) -> Path:
    return make_evaluation(tmp_path_factory.mktemp("evaluation"))


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> dict:
    """The key of a study of two methods on 40 pictures, and its folder."""
    folder = make_evaluation(tmp_path_factory.mktemp("large"), METHODS[:2], 1)
    manifest = json.loads((folder / "evaluation.json").read_text())
    for method in METHODS[:2]:
        for i in range(1, 40):
            shutil.copytree(folder / method / "mural0", folder / method / f"mural{i}")
    manifest["pictures"] = {f"mural{i}": {} for i in range(40)}
    (folder / "evaluation.json").write_text(json.dumps(manifest))
    write_study(folder)
    return {"folder": folder / "study", "key": read_key(folder / "study")}


def page_data(path: Path) -> dict:
    return json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', path.read_text())[1])


def write_votes(path: Path, key: dict, rater: str, choose, num_pairs: int | None = None) -> Path:
    """The votes of a simulated rater: `choose(left_method, right_method)` says "left" or "right"."""
    votes = []
    for pair in key["pairs"][:num_pairs]:
        left, right = (key["clips"][pair[side]]["method"] for side in ("left", "right"))
        for question in key["questions"]:
            answer = choose(left, right)
            votes.append({"pair": pair["id"], "question": question, "answer": answer, "seconds": 2.5})
    path.write_text(json.dumps({"study": key["study"], "rater": rater, "votes": votes}))
    return path


def cells(text: str, start: str) -> list[list[str]]:
    """The cells of the Markdown rows that begin so."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return [row for row in rows if row[0].startswith(start)]


@pytest.mark.parametrize("num_pairs", (5 * 3, 7, 2))
def test_study_pairs_are_balanced_in_matches_and_sides(num_pairs):
    matches, pictures = [("a", "b"), ("a", "c"), ("b", "c")], [f"p{i}" for i in range(5)]
    firsts = Counter()
    for seed in range(200):
        pairs = draw_pairs(matches, pictures, num_pairs, random.Random(seed))
        assert len(pairs) == num_pairs
        assert all(left[1] == right[1] for left, right in pairs)
        assert len({(frozenset((left[0], right[0])), left[1]) for left, right in pairs}) == num_pairs  # none twice
        shown = Counter((left[0], right[0]) for left, right in pairs)
        per_match = [shown[match] + shown[match[::-1]] for match in matches]
        assert max(per_match) - min(per_match) <= 1
        assert all(abs(shown[match] - shown[match[::-1]]) <= 1 for match in matches)
        firsts[pairs[0]] += 1
    assert len(firsts) == 30 and max(firsts.values()) < 30  # which pair opens, and how it stands, is chance


def test_study_is_the_same_by_its_seed_and_another_by_another(evaluation, tmp_path):
    places = (("a", 0), ("b", 0), ("c", 1))
    written = [write_study(evaluation, out=tmp_path / name / "s.html", seed=seed) for name, seed in places]
    a, b, c = ((page_path.read_text(), key_path.read_text()) for page_path, key_path in written)
    assert a == b
    assert json.loads(a[1])["study"] != json.loads(c[1])["study"]


def test_study_compares_methods_with_each_other_and_against_others_on_what_all_have_done(tmp_path):
    folder = make_evaluation(tmp_path / "e", (*METHODS, "fresco"), 2)
    shutil.rmtree(folder / "fresco" / "mural1")
    write_study(folder, methods=["fresco", "regional"], against=["demofusion", "multidiffusion"], num_pairs=5)
    key = read_key(folder / "study" / "study_key.json")
    assert key["matches"] == [
        ["fresco", "regional"], ["fresco", "demofusion"], ["fresco", "multidiffusion"], ["regional", "demofusion"],
        ["regional", "multidiffusion"],
    ]  # fmt: skip
    assert {clip["picture"] for clip in key["clips"].values()} == {"mural0"}


def test_study_page_gives_no_method_away(tmp_path, monkeypatch):
    """It is the same page, but for its id, whatever the methods are called; the same with copied videos."""
    pages = []
    for names in (METHODS, ("ours_a", "ours_b", "ours_c")):  # in the same order
        folder = make_evaluation(tmp_path / names[0], names)
        path, key_path = write_study(folder)
        text = path.read_text()
        assert not any(word in text.lower() for word in (*names, "mural", str(tmp_path), "seed", "sha256"))
        data = page_data(path)
        assert not any(name.encode() in base64.b64decode(clip) for clip in data["clips"].values() for name in names)
        text = re.sub(r"[A-Za-z0-9+/=]{200,}", "CLIP", text)  # of threads, which encode it in their own order
        pages.append(text.replace(read_key(key_path)["study"], "ID"))
        monkeypatch.setattr(page, "EMBED_LIMIT_BYTES", 10)
        path, copies, _ = write_study(folder)
        assert {f"study_files/{file.name}" for file in copies.iterdir()} == set(page_data(path)["clips"].values())
        assert all(re.fullmatch(r"[0-9a-f]{12}\.mp4", file.name) for file in copies.iterdir())
        assert not any(word in path.read_text().lower() for word in (*names, "mural"))
        monkeypatch.undo()
    assert pages[0] == pages[1]


def test_study_key_says_what_the_page_shows(evaluation, tmp_path):
    path, key_path = write_study(evaluation, out=tmp_path / "study.html")
    key, data = read_key(key_path), page_data(path)
    assert list(data["clips"]) == sorted(data["clips"]) and list(key["clips"]) != sorted(key["clips"])  # not by method
    for shown, pair in zip(data["pairs"], key["pairs"]):
        clips = [key["clips"][pair[side]] for side in ("left", "right")]
        assert (shown["id"], shown["left"], shown["right"]) == (pair["id"], pair["left"], pair["right"])
        assert clips[0]["picture"] == clips[1]["picture"] and clips[0]["method"] != clips[1]["method"]
        for side, clip in zip(("left", "right"), clips):
            video = evaluation / clip["method"] / clip["picture"] / "video.mp4"
            assert base64.b64decode(data["clips"][shown[side]]) == video.read_bytes()


def test_study_refuses_what_makes_no_study(evaluation, tmp_path, capsys):
    def told(*args: str) -> str:
        assert study.main([str(evaluation), "--out", str(tmp_path / "new" / "s.html"), *args]) == 2
        assert not (tmp_path / "new").exists()
        return capsys.readouterr().err

    assert "method must be one of demofusion, multidiffusion, regional; got nosuch" in told("--methods", "nosuch")
    assert "--methods must be two or more; got regional" in told("--methods", "regional")
    assert "--pairs must be in 1..9; got 10" in told("--pairs", "10")
    assert "--pairs must be in 1..9; got 0" in told("--pairs", "0")
    assert "must be a file, not a folder" in told("--out", str(tmp_path))


def test_study_refuses_videos_that_differ_in_length_and_one_that_is_missing(tmp_path, monkeypatch, capsys):
    folder = make_evaluation(tmp_path / "e", METHODS[:2], 1)
    shutil.rmtree(folder / METHODS[1] / "mural0")
    monkeypatch.setattr("test_report.FRAMES", 20)
    make_run(folder / METHODS[1] / "mural0", strength=1.0)
    assert study.main([str(folder)]) == 2
    told = capsys.readouterr().err
    assert "the videos of mural0 must be alike" in told and "24 frames (" in told and "20 frames (" in told
    (folder / METHODS[1] / "mural0" / "video.mp4").unlink()
    assert study.main([str(folder)]) == 2
    assert "cannot be read as a video" in capsys.readouterr().err
    assert not (folder / "study").exists()


def test_study_without_its_input_picture_is_not_begun(tmp_path, capsys):
    folder = make_evaluation(tmp_path / "e", METHODS[:2], 1)
    (folder / "mural0.png").unlink()
    assert study.main([str(folder)]) == 2
    assert f"no such file: {folder / 'mural0.png'}" in capsys.readouterr().err
    assert not (folder / "study").exists()


def test_study_does_not_replace_the_key_of_another(evaluation, tmp_path, capsys):
    out = str(tmp_path / "study.html")
    assert study.main([str(evaluation), "--out", out]) == 0
    key = (tmp_path / "study_key.json").read_bytes()
    assert study.main([str(evaluation), "--out", out]) == 0  # the same study again
    assert study.main([str(evaluation), "--out", out, "--seed", "1"]) == 2
    assert "--out must be in a folder without another study" in capsys.readouterr().err
    assert (tmp_path / "study_key.json").read_bytes() == key


@pytest.mark.parametrize(("successes", "n"), [(0, 7), (7, 7), (1, 1), (3, 10), (130, 192), (4999, 5000)])
def test_wilson_is_scipys(successes, n):
    expected = binomtest(successes, n).proportion_ci(method="wilson")
    assert wilson(successes, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize(("a", "b"), [(0, 0), (0, 9), (5, 5), (6, 5), (40, 12), (2000, 2200)])
def test_sign_test_is_scipys(a, b):
    assert sign_test(a, b) == pytest.approx(binomtest(a, a + b).pvalue if a + b else 1.0, rel=1e-9)


def test_tally_finds_a_known_preference_and_flags_who_takes_one_side(large, tmp_path, capsys):
    rng = random.Random(3)

    def likes_first(left, right):
        return "left" if (left == METHODS[0]) == (rng.random() < 0.8) else "right"

    key = large["key"]
    files = [write_votes(tmp_path / f"{i}.json", key, f"rater{i}", likes_first) for i in range(5)]
    files.append(write_votes(tmp_path / "5.json", key, "random", lambda *_: rng.choice(("left", "right"))))
    files.append(write_votes(tmp_path / "6.json", key, "lefty", lambda *_: "left"))
    tally = ["tally", str(large["folder"]), *map(str, files)]
    table = tmp_path / "table.csv"
    assert study.main([*tally, "--without", "lefty", "--without", "random", "--out", str(table)]) == 0
    text = capsys.readouterr().out
    assert "5 raters, 0 of them partial. Without lefty, random." in text
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["question"] for row in rows] == [*QUESTIONS, "average"]
    for row in rows[:2]:
        assert row["methods"] == "demofusion over multidiffusion"
        assert float(row["low_%"]) < 80 < float(row["high_%"]) and float(row["low_%"]) > 65
        assert (row["ratings"], row["raters"]) == ("200", "5")
    assert float(rows[2]["preferred_%"]) == pytest.approx(sum(float(row["preferred_%"]) for row in rows[:2]) / 2)
    assert rows[2]["low_%"] == ""

    assert study.main(tally) == 0
    raters = {row[0]: row for row in cells(capsys.readouterr().out, "")[5:]}
    assert {name for name, row in raters.items() if "takes one side" in row[-1]} == {"lefty"}
    assert raters["lefty"][1:4] == ["80", "80", "100"] and raters["lefty"][5] == "2.5"


def test_tally_counts_each_answer_for_its_method_and_says_who_is_partial(evaluation, tmp_path, capsys):
    write_study(evaluation, out=tmp_path / "study.html")
    key = read_key(tmp_path)

    def alphabetical(left, right):
        return "left" if left < right else "right"

    whole = write_votes(tmp_path / "whole.json", key, "a|b", alphabetical)
    part = write_votes(tmp_path / "part.json", key, "part", lambda left, right: "right" if left < right else "left", 1)
    assert study.main(["tally", str(tmp_path / "study_key.json"), str(whole), str(part)]) == 0
    text = capsys.readouterr().out
    assert "2 raters, 1 of them partial." in text
    seen = {key["clips"][key["pairs"][0][side]]["method"] for side in ("left", "right")}
    for first, second in key["matches"]:
        for row in cells(text, f"{first} over {second}")[:2]:
            both = {first, second} == seen
            low, high = wilson(3, 4) if both else wilson(3, 3)
            expected = ["75" if both else "100", f"{100 * low:.4g}", f"{100 * high:.4g}"]
            assert row[2:] == [*expected, "4" if both else "3", "2" if both else "1"]
    lefts = sum(key["clips"][pair["left"]]["method"] < key["clips"][pair["right"]]["method"] for pair in key["pairs"])
    p = binomtest(lefts, 9).pvalue  # of nine pairs, not of their 18 answers
    assert cells(text, "a\\")[0][2:] == ["18", "18", f"{100 * lefts / 9:.4g}", f"{p:.4g}", "2.5", ""]
    assert cells(text, "part")[0][1:3] == ["2", "18"] and "partial" in cells(text, "part")[0][-1]
    assert "too few pairs to tell sides" in cells(text, "part")[0][-1]  # one answered pair


def test_tally_refuses_votes_that_do_not_count(evaluation, tmp_path, capsys):
    write_study(evaluation, out=tmp_path / "study.html")
    key = read_key(tmp_path)
    good = write_votes(tmp_path / "good.json", key, "anna", lambda *_: "left")
    data = json.loads(good.read_text())

    def told(*paths: Path, study_path: Path = tmp_path) -> str:
        assert study.main(["tally", str(study_path), *map(str, paths)]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("error: ") and err.count("\n") == 1
        return err

    def changed(**changes) -> Path:
        path = tmp_path / "changed.json"
        path.write_text(json.dumps(data | changes))
        return path

    def vote(**changes) -> Path:
        return changed(votes=[data["votes"][0] | changes])

    assert f"study must be {key['study']}, the key's; got 0123" in told(changed(study="0123"))
    assert "pair must be one of the study's; got x" in told(vote(pair="x"))
    assert "pair must be one of the study's; got ['x']" in told(vote(pair=["x"]))
    assert "question must be one of the study's; got x" in told(vote(question="x"))
    assert "answer must be left or right; got both" in told(vote(answer="both"))
    assert "seconds must be a number >= 0; got nan" in told(vote(seconds=float("nan")))
    assert "answered once; got 2 answers" in told(changed(votes=data["votes"][:1] * 2))
    assert "rater must be a name" in told(changed(rater=" "))
    assert "must be the votes that a study's page has saved" in told(changed(votes=[3]))
    (tmp_path / "broken.json").write_text(good.read_text()[:100])
    assert "broken.json must be JSON; it is broken" in told(tmp_path / "broken.json")
    assert "nosuch.json cannot be read: No such file" in told(tmp_path / "nosuch.json")
    again = changed(votes=[])
    assert f"{good} and {again} are both of the rater anna" in told(good, again)
    assert "votes must be given; got none" in told(again)
    altered = {**key, "pairs": key["pairs"][1:]}
    (tmp_path / "altered.json").write_text(json.dumps(altered))
    assert "must be the key of a study, unchanged" in told(good, study_path=tmp_path / "altered.json")
    assert study.main(["tally", str(tmp_path), str(good), "--without", "otto"]) == 2
    assert "--without must be one of anna; got otto" in capsys.readouterr().err


def test_study_of_videos_that_no_browser_plays_is_refused_in_one_line(tmp_path, evaluation):
    folder = shutil.copytree(evaluation, tmp_path / "evaluation")
    path = folder / METHODS[1] / "mural1" / "run.json"
    run = json.loads(path.read_text())
    run["config"]["video"]["format"] = "prores"
    path.write_text(json.dumps(run))
    with pytest.raises(InputError) as refused:
        write_study(folder)
    assert str(refused.value) == (
        f"video.format of {METHODS[1]} on mural1 must be one that browsers play (h264, h265, av1); got prores."
        " Start the run again with video.format=h264."
    )
    assert not (folder / "study").exists()
