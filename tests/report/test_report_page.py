"""The page of a sweep in a real headless Chromium, opened from its file:// path."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from test_report import FPS, FRAMES, make_run

from fresco_dist import report
from fresco_dist.report import page

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER),
    reason="needs chromium and chromedriver (Debian: apt-get install chromium chromium-driver)",
)

SHOWN = """
window.shown = [];
const now = {};
document.querySelectorAll("video").forEach((video, i) => {
  const note = (_, facts) => { now[i] = facts.mediaTime; video.requestVideoFrameCallback(note); };
  video.requestVideoFrameCallback(note);
});
const total = document.querySelectorAll("video").length;
const sample = () => {
  if (Object.keys(now).length === total) window.shown.push(Object.values(now));
  requestAnimationFrame(sample);
};
requestAnimationFrame(sample);
"""
PIXEL = """
const canvas = document.createElement("canvas"), video = arguments[0];
[canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
const context = canvas.getContext("2d");
context.drawImage(video, 0, 0);
return Array.from(context.getImageData(canvas.width / 2, canvas.height / 2, 1, 1).data);
"""


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> Path:
    """Four runs and a failed one."""
    path = tmp_path_factory.mktemp("sweep")
    for index, strength in enumerate((0.0, 1.0, 2.0, 4.0)):
        make_run(path / str(index), strength=strength)
    make_run(path / "4", strength=9.0, status="failed", prompt="</script><script>document.title = 'broken'</script>")
    return path


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    profile = tmp_path_factory.mktemp("profile")
    for option in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", f"user-data-dir={profile}"):
        options.add_argument(f"--{option}")
    options.add_argument("--window-size=1200,900")
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser, sweep) -> webdriver.Chrome:
    """The page of the sweep, playing."""
    return _open(browser, report.write(sweep) / "index.html")


def _open(browser, path: Path) -> webdriver.Chrome:
    browser.get(path.as_uri())
    _wait(lambda: browser.execute_script("return playing"), "playing")
    return browser


def _wait(condition, what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"not {what} within 60 s"
        time.sleep(0.1)


def _times(browser) -> list[float]:
    return browser.execute_script("return videos.map((video) => video.currentTime)")


def test_page_plays_all_videos_in_sync_within_one_frame_also_from_the_start_again(opened):
    opened.execute_script(SHOWN)
    _wait(lambda: opened.execute_script("return shown.filter((t) => t[0] < 0.5).length > 2"), "playing again")
    _wait(lambda: opened.execute_script("return shown.length") > 200, "long enough")
    frames = np.floor(np.array(opened.execute_script("return shown")) * FPS + 0.5)
    assert frames.shape[1] == 4 and len(np.unique(frames[:, 0])) > FRAMES / 2  # they play, frame by frame
    apart = np.abs(frames - frames[:, :1])
    assert np.minimum(apart, FRAMES - apart).max() <= 1  # the first frame follows the last one


def test_page_shows_the_same_frame_everywhere_when_it_stands(opened):
    opened.find_element(By.ID, "play").click()
    for key, expected in ((Keys.ARROW_LEFT, 8), (Keys.ARROW_RIGHT, 9), (Keys.ARROW_RIGHT, 10)):
        if expected == 8:
            opened.execute_async_script("showFrame(9).then(arguments[0])")
        opened.find_element(By.TAG_NAME, "body").send_keys(key)
        _wait(lambda expected=expected: f"frame {expected} of {FRAMES - 1}" in _frame_text(opened), f"at {expected}")
        _wait(lambda: not opened.execute_script("return videos.some((video) => video.seeking)"), "there")
        for i, strength in enumerate((0, 1, 2, 4)):
            red, green, _, _ = opened.execute_script(PIXEL, opened.find_elements(By.TAG_NAME, "video")[i])
            assert abs(green - 10 * expected) <= 6 and abs(red - 20 * strength) <= 12  # H.264 is not exact


def _frame_text(browser) -> str:
    return browser.find_element(By.ID, "frame").text


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
    scale = float(np.e)
    for x, y, width in boxes():  # the middle stays where it was
        assert (x, y) == pytest.approx(((1 - 1 / scale) / 2,) * 2, abs=2e-3) and width == pytest.approx(scale, rel=1e-3)
    before = boxes()[0]
    ActionChains(opened).drag_and_drop_by_offset(views[2], 30, 10).perform()
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
    errors = [entry for entry in opened.get_log("browser") if entry["level"] == "SEVERE"]
    assert errors == []


def test_page_is_one_file_that_can_be_moved(browser, sweep, tmp_path):
    shutil.copy(report.write(sweep) / "index.html", tmp_path / "moved.html")
    opened = _open(browser, tmp_path / "moved.html")
    assert all(video.startswith("blob:") for video in opened.execute_script("return videos.map((video) => video.src)"))
    _wait(lambda: min(_times(opened)) > 0.3, "playing")
    assert "complete in itself" in opened.find_element(By.ID, "note").text


def test_page_with_too_much_video_refers_to_the_run_folders(browser, sweep, monkeypatch):
    monkeypatch.setattr(page, "EMBED_LIMIT_BYTES", 10)
    folder = report.write(sweep)
    opened = _open(browser, folder / "index.html")
    expected = [(sweep / str(i) / "video.mp4").as_uri() for i in range(4)]
    assert opened.execute_script("return videos.map((video) => video.src)") == expected
    _wait(lambda: min(_times(opened)) > 0.3, "playing")
    assert "keep it beside the run folders" in opened.find_element(By.ID, "note").text
