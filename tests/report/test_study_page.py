"""The page of a user study, answered by keyboard and mouse in a real headless Chromium from its file:// path."""

import json
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from test_report import FPS, FRAMES
from test_report_page import CHROMIUM, DRIVER, PIXEL, SHOWN, _wait
from test_report_page import pytestmark as pytestmark
from test_study import METHODS, make_evaluation

from fresco_dist.report import page
from fresco_dist.report.study import __main__ as study
from fresco_dist.report.study.votes import read_key, read_votes
from fresco_dist.report.study.writing import QUESTIONS, write_study

NUM_QUESTIONS = len(QUESTIONS)
SEEDS = count()


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory) -> Path:
    """Two methods, whose videos are dark and red, on three pictures."""
    return make_evaluation(tmp_path_factory.mktemp("evaluation"), (METHODS[0], METHODS[2]), 3)


@pytest.fixture(scope="module")
def downloads(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def browser(tmp_path_factory, downloads) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    profile = tmp_path_factory.mktemp("profile")
    for option in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", f"user-data-dir={profile}"):
        options.add_argument(f"--{option}")
    options.add_argument("--window-size=1200,900")
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser, evaluation, tmp_path) -> webdriver.Chrome:
    """The page of a study that the browser does not know, its videos in it, at the first pair."""
    path, _ = write_study(evaluation, out=tmp_path / "study.html", seed=next(SEEDS))
    _start(browser, path, "Anna B.")
    return browser


def _start(browser, path: Path, rater: str) -> None:
    browser.get(path.as_uri())
    browser.find_element(By.ID, "rater").send_keys(rater, Keys.ENTER)
    _ready(browser)


def _ready(browser) -> None:
    _wait(lambda: browser.execute_script("return ready && !starting"), "ready")


def _press(browser, key: str) -> None:
    _ready(browser)
    browser.find_element(By.TAG_NAME, "body").send_keys(key)


def _text(browser, name: str) -> str:
    return browser.find_element(By.ID, name).text


def _red(browser) -> list[int]:
    """How red the left and the right video are: that of the second method is."""
    return [browser.execute_script(PIXEL, video)[0] for video in browser.find_elements(By.TAG_NAME, "video")]


def _votes(path: Path) -> dict:
    _wait(path.is_file, f"saved as {path.name}")
    return json.loads(path.read_text())


def test_study_page_answered_by_keyboard_over_a_reload_is_counted_for_the_methods_that_were_seen(
    opened, tmp_path, downloads, capsys
):
    key = read_key(tmp_path)
    number = 0
    for index in range(3):
        for question, (name, text) in enumerate(QUESTIONS.items()):
            assert _text(opened, "position") == f"Pair {index + 1} of 3, question {question + 1} of 2"
            shown = _text(opened, "question")
            assert name in shown.lower() and text in shown
            _ready(opened)
            left, right = _red(opened)
            assert abs(left - right) > 15
            redder = left > right  # for the second method, by left, 1, right and 2 in turn
            _press(opened, ((Keys.ARROW_RIGHT, Keys.ARROW_LEFT), ("2", "1"))[number % 2][redder])
            number += 1
            if number == 3:
                opened.refresh()
                _wait(lambda: _text(opened, "position"), "back")
    path = downloads / f"votes-{key['study']}-Anna_B_.json"
    assert _text(opened, "file") == path.name
    saved = _votes(path)
    assert (saved["study"], saved["rater"], len(saved["votes"])) == (key["study"], "Anna B.", 6)
    assert all(0 <= vote["seconds"] < 60 for vote in saved["votes"])
    assert study.main(["tally", str(tmp_path), str(path)]) == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| demofusion over")]
    assert [row[2] for row in rows] == ["0"] * 3  # the first method never
    path.unlink()


def test_study_page_shows_both_videos_at_one_size_and_the_same_frame(opened):
    boxes = opened.execute_script(
        "return videos.map((video) => video.getBoundingClientRect()).map((box) => [box.width, box.height, box.y])"
    )
    assert boxes[0] == boxes[1] and boxes[0][0] == pytest.approx(2 * boxes[0][1], rel=0.01) and boxes[0][0] > 300
    opened.execute_script(SHOWN)
    _wait(lambda: opened.execute_script("return shown.filter((t) => t[0] < 0.5).length > 2"), "playing again")
    _wait(lambda: opened.execute_script("return shown.length") > 200, "long enough")
    frames = np.floor(np.array(opened.execute_script("return shown")) * FPS + 0.5)
    assert frames.shape[1] == 2 and len(np.unique(frames[:, 0])) > FRAMES / 2
    apart = np.abs(frames[:, 1] - frames[:, 0])
    assert np.minimum(apart, FRAMES - apart).max() <= 1
    picture = opened.find_element(By.ID, "picture")
    assert opened.execute_script("return arguments[0].naturalWidth", picture) == 60
    assert 0 <= picture.rect["y"] < boxes[0][2] and picture.rect["height"] < boxes[0][1]
    bottom = opened.execute_script("return element('right').getBoundingClientRect().bottom - innerHeight")
    assert bottom <= 0  # all is seen without scrolling
    errors = [entry for entry in opened.get_log("browser") if entry["level"] == "SEVERE"]
    assert errors == []


def test_study_page_shows_the_rater_nothing_of_the_methods(opened):
    seen = opened.execute_script("return document.documentElement.outerHTML").lower()
    assert not any(word in seen for word in (METHODS[0], METHODS[2], "mural"))


def test_study_page_takes_clicks_and_corrects_the_last_answer_on_another_pair_too(opened, tmp_path, downloads):
    assert not opened.find_element(By.ID, "back").is_enabled()
    opened.find_element(By.ID, "left").click()
    opened.find_element(By.ID, "right").click()
    _ready(opened)
    assert "Pair 2 of 3, question 1" in _text(opened, "position")
    first = opened.execute_script("return data.pairs[0]")
    opened.find_element(By.ID, "back").click()
    _ready(opened)
    assert opened.execute_script("return onScreen.id") == first["id"]
    _press(opened, Keys.BACKSPACE)
    assert "Pair 1 of 3, question 1" in _text(opened, "position")
    _press(opened, Keys.ARROW_RIGHT)
    opened.find_element(By.ID, "save").click()
    path = downloads / f"votes-{read_key(tmp_path)['study']}-Anna_B_.json"
    _wait(path.is_file, "saved")
    votes = read_votes([path], read_key(tmp_path))["Anna B."]
    assert [(vote.pair, vote.answer) for vote in votes] == [(first["id"], "right")]
    path.unlink()


def test_study_page_takes_no_answer_before_the_videos_are_there_nor_from_a_held_key(opened):
    opened.execute_script("load(onScreen); answer('left'); answer('left')")
    assert opened.execute_script("return state.votes.length") == 0
    _ready(opened)
    opened.execute_script(
        "for (const repeat of [false, true, true])"
        " document.dispatchEvent(new KeyboardEvent('keydown', { key: 'ArrowLeft', repeat }))"
    )
    assert opened.execute_script("return state.votes.length") == 1


def test_study_page_says_so_if_it_cannot_keep_answers(browser, evaluation, tmp_path, downloads):
    write_study(evaluation, out=tmp_path / "study.html", seed=next(SEEDS))
    refuse = "Storage.prototype.setItem = () => { throw new Error('refused'); }"
    added = browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": refuse})
    try:
        _start(browser, tmp_path / "study.html", "")
        assert "a reload loses your answers" in _text(browser, "warning")
        for _ in range(3 * NUM_QUESTIONS):
            _press(browser, "1")
        name = _text(browser, "file")  # a name of its own for who gave none
        assert name.startswith(f"votes-{read_key(tmp_path)['study']}-anonymous-")
        assert len(_votes(downloads / name)["votes"]) == 6
    finally:
        browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)


def test_study_page_with_too_much_video_plays_the_copies_beside_it(browser, evaluation, tmp_path, monkeypatch):
    monkeypatch.setattr(page, "EMBED_LIMIT_BYTES", 10)
    path, copies, _ = write_study(evaluation, out=tmp_path / "study.html", seed=next(SEEDS))
    _start(browser, path, "")
    sources = browser.execute_script("return videos.map((video) => video.src)")
    assert {Path(source).parent.name for source in sources} == {copies.name}
    _wait(lambda: min(browser.execute_script("return videos.map((v) => v.currentTime)")) > 0.3, "playing")
    assert _text(browser, "warning") == ""
    for missing in copies.iterdir():
        missing.unlink()
    browser.refresh()
    _wait(lambda: "Is study_files beside this page?" in _text(browser, "warning"), "said")
