"""A real headless Chromium for the pages, and what they show: each look is one script, so nothing changes within it.

A page on a busy machine is late, not wrong: tests wait for what they are about, for at most `DEADLINE_S`.
"""

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from selenium import webdriver
from test_report import FPS, FRAMES

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
needs_browser = pytest.mark.skipif(
    not (CHROMIUM and DRIVER),
    reason="needs chromium and chromedriver (Debian: apt-get install chromium chromium-driver)",
)
DEADLINE_S = 120

# Samples of the frames that are on screen; none while the videos go to the start, nor before each has shown one since.
SAMPLE = """
window.shown = [];
window.restarts = 0;
let now = new Map(), before = starting;
videos.forEach((video) => {
  const note = (_, facts) => { now.set(video, facts.mediaTime); video.requestVideoFrameCallback(note); };
  video.requestVideoFrameCallback(note);
});
const sample = () => {
  if (starting) now.clear();
  if (starting && !before) restarts += 1;
  before = starting;
  if (now.size === videos.length) shown.push(videos.map((video) => now.get(video)));
  requestAnimationFrame(sample);
};
requestAnimationFrame(sample);
"""
PIXELS = """((chosen) => {
  if (starting || chosen.some((video) => video.seeking || video.readyState < 2)) return null;
  return chosen.map((video) => {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
    const context = canvas.getContext("2d");
    context.drawImage(video, 0, 0);
    return Array.from(context.getImageData(canvas.width / 2, canvas.height / 2, 1, 1).data);
  });
})"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[webdriver.Chrome]:
    """A browser with a profile of its own; what it saves is in the folder `browser.downloads`."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    profile, downloads = tmp_path_factory.mktemp("profile"), tmp_path_factory.mktemp("downloads")
    for option in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", f"user-data-dir={profile}"):
        options.add_argument(f"--{option}")
    options.add_argument("--window-size=1200,900")
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.downloads = downloads
    driver.set_script_timeout(DEADLINE_S)
    yield driver
    driver.quit()


def open_page(browser: webdriver.Chrome, path: Path) -> None:
    """Open a page; `errors` are its own from here on."""
    browser.get("about:blank")  # the page before says nothing more
    browser.get_log("browser")
    browser.get(path.as_uri())


def errors(browser: webdriver.Chrome) -> list[dict]:
    """What the page has told the console since it was opened, or since the last call."""
    return [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def wait(condition: Callable[[], Any], what: str) -> Any:
    """Wait until `condition()` holds; returns its value."""
    deadline = time.monotonic() + DEADLINE_S
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not {what} within {DEADLINE_S} s"
        time.sleep(0.1)
    return value


def wait_for(browser: webdriver.Chrome, script: str, what: str, *arguments: Any) -> Any:
    """Wait until a JavaScript expression holds; returns its value."""
    return wait(lambda: browser.execute_script(f"return {script}", *arguments), what)


def pixels(browser: webdriver.Chrome, videos: str = "videos") -> list[list[int]]:
    """Red, green, blue and alpha in the middle of `videos`, a JavaScript expression, once all show a frame."""
    return wait_for(browser, f"{PIXELS}({videos})", "showing a frame")


def assert_plays_in_step(browser: webdriver.Chrome, num_videos: int) -> None:
    """Check that the videos of a page play frame by frame, together, and from the start again.

    Mostly within one frame, and nearly always within the two beyond which the pages have a video jump.
    """
    browser.execute_script(SAMPLE)
    done = "restarts > 1 && shown.length > 100 && new Set(shown.map((times) => times[0])).size > arguments[0]"
    wait_for(browser, done, "played twice", FRAMES / 2)
    frames = np.floor(np.array(browser.execute_script("return shown")) * FPS + 0.5)
    assert frames.shape[1] == num_videos, f"{frames.shape[1]} videos"
    most, nearly_all = np.quantile(np.abs(frames - frames[:, :1]).max(axis=1), (0.5, 0.95))
    assert most <= 1 and nearly_all <= 2, f"most are within {most} frames, nearly all within {nearly_all}"
