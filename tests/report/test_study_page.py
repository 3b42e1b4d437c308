"""The page of a user study, answered by keyboard and mouse in a real headless Chromium from its file:// path."""

import json
import time
from itertools import count
from pathlib import Path

import pytest
from browsers import assert_plays_in_step, browser, errors, needs_browser, open_page, pixels, wait, wait_for  # noqa: F401
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from test_study import METHODS, make_evaluation

from fresco_dist.report import page
from fresco_dist.report.study import __main__ as study
from fresco_dist.report.study.votes import read_key, read_votes
from fresco_dist.report.study.writing import QUESTIONS, write_study

pytestmark = needs_browser

NUM_QUESTIONS = len(QUESTIONS)
SEEDS = count()


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory) -> Path:
    """Two methods, whose videos are dark and red, on three pictures."""
    return make_evaluation(tmp_path_factory.mktemp("evaluation"), (METHODS[0], METHODS[2]), 3)


@pytest.fixture
def opened(browser, evaluation, tmp_path) -> webdriver.Chrome:  # noqa: F811
    """The page of a study that the browser does not know, its videos in it, at the first pair."""
    path, _ = write_study(evaluation, out=tmp_path / "study.html", seed=next(SEEDS))
    _start(browser, path, "Anna B.")
    return browser


def _start(driver, path: Path, rater: str) -> None:
    open_page(driver, path)
    driver.find_element(By.ID, "rater").send_keys(rater, Keys.ENTER)
    _ready(driver)


def _ready(driver) -> None:
    wait_for(driver, "ready && !starting", "ready")


def _press(driver, key: str) -> None:
    _ready(driver)
    driver.find_element(By.TAG_NAME, "body").send_keys(key)


def _text(driver, name: str) -> str:
    return driver.find_element(By.ID, name).text


def _wait_for_position(driver, text: str) -> None:
    wait(lambda: text in _text(driver, "position"), f"at {text}")


def _votes(path: Path) -> dict:
    """What the page has saved, once it is whole."""

    def read() -> dict | None:
        try:
            return json.loads(path.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return None

    return wait(read, f"saved as {path.name}")


def test_study_page_answered_by_keyboard_over_a_reload_is_counted_for_the_methods_that_were_seen(
    opened, tmp_path, capsys
):
    key, began = read_key(tmp_path), time.monotonic() - opened.execute_script("return performance.now()") / 1000
    number = 0
    for index in range(3):
        for question, (name, text) in enumerate(QUESTIONS.items()):
            _wait_for_position(opened, f"Pair {index + 1} of 3, question {question + 1} of 2")
            shown = _text(opened, "question")
            assert name in shown.lower() and text in shown
            _ready(opened)
            (left, *_), (right, *_) = pixels(opened)  # how red the videos are
            assert abs(left - right) > 15
            redder = left > right  # for the second method, by left, 1, right and 2 in turn
            _press(opened, ((Keys.ARROW_RIGHT, Keys.ARROW_LEFT), ("2", "1"))[number % 2][redder])
            number += 1
            if number == 3:
                opened.refresh()
    path = opened.downloads / f"votes-{key['study']}-Anna_B_.json"
    wait(lambda: _text(opened, "file") == path.name, "at the end")
    saved = _votes(path)
    assert (saved["study"], saved["rater"], len(saved["votes"])) == (key["study"], "Anna B.", 6)
    seconds = [vote["seconds"] for vote in saved["votes"]]
    assert min(seconds) >= 0 and 0 < sum(seconds) < time.monotonic() - began  # one after the other
    assert study.main(["tally", str(tmp_path), str(path)]) == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| demofusion over")]
    assert [row[2] for row in rows] == ["0"] * 3  # the first method never
    path.unlink()


def test_study_page_shows_both_videos_at_one_size_and_the_same_frame(opened):
    boxes = opened.execute_script(
        "return videos.map((video) => video.getBoundingClientRect()).map((box) => [box.width, box.height, box.y])"
    )
    assert boxes[0] == boxes[1] and boxes[0][0] == pytest.approx(2 * boxes[0][1], rel=0.01) and boxes[0][0] > 300
    assert_plays_in_step(opened, 2)
    picture = opened.find_element(By.ID, "picture")
    wait_for(opened, "arguments[0].naturalWidth === 60", "showing the picture", picture)
    assert 0 <= picture.rect["y"] < boxes[0][2] and picture.rect["height"] < boxes[0][1]
    bottom = opened.execute_script("return element('right').getBoundingClientRect().bottom - innerHeight")
    assert bottom <= 0  # all is seen without scrolling
    assert errors(opened) == []


def test_study_page_shows_the_rater_nothing_of_the_methods(opened):
    seen = opened.execute_script("return document.documentElement.outerHTML").lower()
    assert not any(word in seen for word in (METHODS[0], METHODS[2], "mural"))


def test_study_page_takes_clicks_and_corrects_the_last_answer_on_another_pair_too(opened, tmp_path):
    assert not opened.find_element(By.ID, "back").is_enabled()
    opened.find_element(By.ID, "left").click()
    opened.find_element(By.ID, "right").click()
    _ready(opened)
    _wait_for_position(opened, "Pair 2 of 3, question 1")
    first = opened.execute_script("return data.pairs[0]")
    opened.find_element(By.ID, "back").click()
    _ready(opened)
    assert opened.execute_script("return onScreen.id") == first["id"]
    _press(opened, Keys.BACKSPACE)
    _wait_for_position(opened, "Pair 1 of 3, question 1")
    _press(opened, Keys.ARROW_RIGHT)
    opened.find_element(By.ID, "save").click()
    path = opened.downloads / f"votes-{read_key(tmp_path)['study']}-Anna_B_.json"
    _votes(path)
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


def test_study_page_says_so_if_it_cannot_keep_answers(browser, evaluation, tmp_path):  # noqa: F811
    write_study(evaluation, out=tmp_path / "study.html", seed=next(SEEDS))
    refuse = "Storage.prototype.setItem = () => { throw new Error('refused'); }"
    added = browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": refuse})
    try:
        _start(browser, tmp_path / "study.html", "")
        assert "a reload loses your answers" in _text(browser, "warning")
        for _ in range(3 * NUM_QUESTIONS):
            _press(browser, "1")
        name = wait(lambda: _text(browser, "file"), "at the end")  # a name of its own for who gave none
        assert name.startswith(f"votes-{read_key(tmp_path)['study']}-anonymous-")
        assert len(_votes(browser.downloads / name)["votes"]) == 6
    finally:
        browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)


def test_study_page_with_too_much_video_plays_the_copies_beside_it(browser, evaluation, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(page, "EMBED_LIMIT_BYTES", 10)
    path, copies, _ = write_study(evaluation, out=tmp_path / "study.html", seed=next(SEEDS))
    _start(browser, path, "")
    sources = browser.execute_script("return videos.map((video) => video.src)")
    assert {Path(source).parent.name for source in sources} == {copies.name}
    wait_for(browser, "videos.every((video) => video.currentTime > 0.3)", "playing")
    assert _text(browser, "warning") == ""
    for missing in copies.iterdir():
        missing.unlink()
    browser.refresh()
    wait(lambda: "Is study_files beside this page?" in _text(browser, "warning"), "said")
