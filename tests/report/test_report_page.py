"""The page of a sweep in a real headless Chromium, opened from its file:// path."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from browsers import assert_plays_in_step, browser, errors, needs_browser, open_page, pixels, wait, wait_for  # noqa: F401
from selenium import webdriver
from selenium.webdriver import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from test_report import FRAMES, make_run

from fresco_dist import report
from fresco_dist.report import page

pytestmark = needs_browser


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> Path:
    """Four runs and a failed one."""
    path = tmp_path_factory.mktemp("sweep")
    for index, strength in enumerate((0.0, 1.0, 2.0, 4.0)):
        make_run(path / str(index), strength=strength)
    make_run(path / "4", strength=9.0, status="failed", prompt="</script><script>document.title = 'broken'</script>")
    return path


@pytest.fixture
def opened(browser, sweep) -> webdriver.Chrome:  # noqa: F811
    """The page of the sweep, playing."""
    return _open(browser, report.write(sweep) / "index.html")


def _open(driver, path: Path) -> webdriver.Chrome:
    open_page(driver, path)
    wait_for(driver, "playing && !starting && videos.every((video) => video.readyState > 1)", "playing")
    return driver


def _wait_to_play_on(driver) -> None:
    wait_for(driver, "videos.every((video) => video.currentTime > 0.3)", "playing")


def _wait_for_frame(driver, frame: int) -> None:
    text = driver.find_element(By.ID, "frame")
    wait(lambda: text.text == f"frame {frame} of {FRAMES - 1}", f"at frame {frame}")


def test_page_plays_all_videos_in_step_also_from_the_start_again(opened):
    assert_plays_in_step(opened, 4)


def test_page_shows_the_same_frame_everywhere_when_it_stands(opened):
    opened.find_element(By.ID, "play").click()
    opened.execute_async_script("showFrame(9).then(arguments[0])")
    for key, expected in ((Keys.ARROW_LEFT, 8), (Keys.ARROW_RIGHT, 9), (Keys.ARROW_RIGHT, 10)):
        opened.find_element(By.TAG_NAME, "body").send_keys(key)
        _wait_for_frame(opened, expected)
        for (red, green, _, _), strength in zip(pixels(opened), (0, 1, 2, 4), strict=True):
            assert abs(green - 10 * expected) <= 6 and abs(red - 20 * strength) <= 12  # H.264 is not exact


def _press_at_once(driver, *keys: str, **modifiers: bool) -> list[bool]:
    """Press keys with nothing between; says of each whether it is left to the driver."""
    options = modifiers | {"bubbles": True, "cancelable": True}
    press = "(key) => document.body.dispatchEvent(new KeyboardEvent('keydown', { key, ...arguments[1] }))"
    return driver.execute_script(f"return arguments[0].map({press})", keys, options)


def test_page_moves_by_as_many_frames_as_keys_are_pressed_however_quickly(opened):
    opened.execute_async_script("showFrame(9).then(arguments[0])")
    assert _press_at_once(opened, "ArrowRight", "ArrowRight") == [False, False]
    _wait_for_frame(opened, 11)
    _press_at_once(opened, *["ArrowLeft"] * 4)
    _wait_for_frame(opened, 7)
    opened.execute_async_script("showFrame(1000).then(arguments[0])")
    _wait_for_frame(opened, FRAMES - 1)
    opened.find_element(By.TAG_NAME, "body").send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_LEFT)
    _wait_for_frame(opened, FRAMES - 2)


@pytest.mark.parametrize("modifier", ["ctrlKey", "metaKey", "altKey"])
def test_page_leaves_keys_with_a_modifier_to_the_browser(opened, modifier):
    opened.execute_script("zoom.scale = 2")
    assert _press_at_once(opened, "ArrowLeft", "ArrowRight", "0", " ", **{modifier: True}) == [True] * 4
    assert opened.execute_script("return [zoom.scale, playing]") == [2, True]


def test_page_zooms_and_moves_all_videos_together(opened):
    def boxes():
        return [(r["x"], r["y"], r["width"]) for r in opened.execute_script(
            "return videos.map((video, i) => { const a = video.getBoundingClientRect(),"
            " b = views[i].getBoundingClientRect();"
            " return {x: (b.x - a.x) / a.width, y: (b.y - a.y) / a.height, width: a.width / b.width}; })"
        )]  # fmt: skip

    assert boxes() == [(0, 0, 1)] * 4
    views = opened.find_elements(By.CLASS_NAME, "view")
    origin = webdriver.common.actions.wheel_input.ScrollOrigin.from_element(views[1])  # its middle
    ActionChains(opened).scroll_from_origin(origin, 0, -400).perform()
    wait(lambda: boxes()[0] != (0, 0, 1), "zoomed")
    scale = float(np.e)
    for x, y, width in boxes():  # the middle stays where it was
        assert (x, y) == pytest.approx(((1 - 1 / scale) / 2,) * 2, abs=2e-3) and width == pytest.approx(scale, rel=1e-3)
    before = boxes()[0]
    ActionChains(opened).drag_and_drop_by_offset(views[2], 30, 10).perform()
    wait(lambda: boxes()[0] != before, "moved")
    side = views[2].size
    for x, y, _ in boxes():
        assert x == pytest.approx(before[0] - 30 / side["width"] / scale, abs=2e-3)
        assert y == pytest.approx(before[1] - 10 / side["height"] / scale, abs=2e-3)
    opened.find_element(By.ID, "reset").click()
    assert boxes() == [(0, 0, 1)] * 4


def test_page_tells_all_runs_and_nothing_in_it_is_code(opened):
    rows = opened.find_elements(By.CSS_SELECTOR, "#tables tr")
    assert len(rows) == 6 and "failed" in rows[5].text and "</script>" in rows[5].text
    assert opened.title == "Sweep"
    captions = [caption.text for caption in opened.find_elements(By.TAG_NAME, "figcaption")]
    assert [caption.split(":")[0] for caption in captions] == ["0", "1", "2", "3"]
    assert "prior_strength 4" in captions[3]
    assert opened.execute_script("return document.getElementById('plane').naturalWidth") > 500
    assert errors(opened) == []


def test_page_is_one_file_that_can_be_moved(browser, sweep, tmp_path):  # noqa: F811
    shutil.copy(report.write(sweep) / "index.html", tmp_path / "moved.html")
    opened = _open(browser, tmp_path / "moved.html")
    assert all(video.startswith("blob:") for video in opened.execute_script("return videos.map((video) => video.src)"))
    _wait_to_play_on(opened)
    assert "complete in itself" in opened.find_element(By.ID, "note").text


def test_page_with_too_much_video_refers_to_the_run_folders(browser, sweep, monkeypatch):  # noqa: F811
    monkeypatch.setattr(page, "EMBED_LIMIT_BYTES", 10)
    folder = report.write(sweep)
    opened = _open(browser, folder / "index.html")
    expected = [(sweep / str(i) / "video.mp4").as_uri() for i in range(4)]
    assert opened.execute_script("return videos.map((video) => video.src)") == expected
    _wait_to_play_on(opened)
    assert "keep it beside the run folders" in opened.find_element(By.ID, "note").text
