"""The page of a comparison in a real headless Chromium: which videos it loads, in which order, and that they play."""

import json
import shutil
from pathlib import Path

import pytest
from browsers import browser, errors, needs_browser, open_page, pixels, wait_for  # noqa: F401 (a fixture)
from selenium.webdriver.common.by import By
from selenium.webdriver.support.select import Select
from test_comparison import write_manifest
from test_report import FRAMES, make_run

from fresco_dist import report
from fresco_dist.report import page

pytestmark = needs_browser

METHODS = ("fresco", "spot", "supergen")
PICTURES = [f"mural {i}" for i in range(11)] + ["a#b?c %20"]
RAISED = (3.0, -5.0, 1.0, 0.5, -2.0, 9.0, -0.5, 2.0, -7.0, 0.0, 4.0, -1.0)  # sharpness of spot above fresco's
IN_STEP = """(() => {
  const frames = videos.map((video) => video.currentTime * video.fps);
  return !starting && frames[0] > arguments[0] / 4 && frames.every((frame) => Math.abs(frame - frames[0]) < 1.5);
})()"""
DOWN = [PICTURES[i] for i in sorted(range(12), key=lambda i: -RAISED[i])]


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory) -> Path:
    """Twelve pictures; supergen has the first two alone, and one of those without the metric."""
    path = tmp_path_factory.mktemp("evaluation")
    for m, method in enumerate(METHODS):
        for i, name in enumerate(PICTURES[:2] if method == "supergen" else PICTURES):
            folder = path / method / name
            make_run(folder, strength=float(4 * m), image=f"/x/{name}.png", canvas={"width": 96, "height": 48})
            run = json.loads((folder / "run.json").read_text())
            run["metrics"]["sharpness"] = 100.0 * i + (RAISED[i] if method == "spot" else 0.0)
            if (method, i) == ("supergen", 0):
                del run["metrics"]["sharpness"]
            (folder / "run.json").write_text(json.dumps(run))
    write_manifest(path, METHODS, PICTURES, {"row 7": "</script><script>document.title = 'broken'</script>"})
    return path


@pytest.fixture
def opened(browser, evaluation):  # noqa: F811
    open_page(browser, report.write_comparison(evaluation) / "comparison.html")
    _go_to(browser, 0)
    return browser


def _go_to(driver, group: int) -> None:
    driver.execute_script("groups[arguments[0]].element.scrollIntoView()", group)
    playing = "!starting && videos.every((video) => !video.paused)"
    wait_for(driver, f"groups[arguments[0]].slots.every((slot) => slot.video) && {playing}", "playing", group)


def _titles(driver) -> list[str]:
    return driver.execute_script("return groups.map((g) => g.element.querySelector('h3').firstChild.textContent)")


def _choose(driver, **choices) -> None:
    for name, value in choices.items():
        Select(driver.find_element(By.ID, name)).select_by_value(value)


def test_comparison_page_orders_pairs_by_their_difference(opened):
    alternating = [DOWN[i // 2] if i % 2 == 0 else DOWN[-(i + 1) // 2] for i in range(12)]
    assert _titles(opened) == alternating
    _choose(opened, order="down")
    assert _titles(opened) == DOWN
    _choose(opened, order="up")
    assert _titles(opened) == DOWN[::-1]
    _choose(opened, order="none")
    assert _titles(opened) == PICTURES
    details = [each.text for each in opened.find_elements(By.CSS_SELECTOR, "h3 small")]
    assert details[1:3] == ["sharpness 100 to 95: -5", "sharpness 200 to 201: +1"]
    _choose(opened, order="down", metric="temporal_difference")
    assert _titles(opened) == PICTURES  # all differ by the same
    _choose(opened, metric="sharpness", method="supergen")
    assert _titles(opened) == [PICTURES[1], PICTURES[0]]  # what lacks the metric comes last
    assert opened.find_element(By.ID, "count").text == "2 pairs"
    assert [each.text for each in opened.find_elements(By.TAG_NAME, "figcaption")] == ["fresco", "supergen"] * 2


def test_comparison_page_loads_what_is_in_view_alone_and_plays_it_in_step(opened):
    for group in (0, 11, 5):
        _go_to(opened, group)
        loaded, in_all = opened.execute_script(
            "return [groups.map((group) => group.slots.filter((slot) => slot.video).length),"
            " document.querySelectorAll('video').length]"
        )
        near = [i for i, num in enumerate(loaded) if num]
        assert group in near and 2 <= sum(loaded) <= 10 and near == list(range(near[0], near[-1] + 1))
        assert in_all == sum(loaded)
        wait_for(opened, IN_STEP, "in step", FRAMES)


def test_comparison_page_loads_nothing_before_it_knows_what_is_in_view(opened):
    assert opened.execute_script("showPairs(); return document.querySelectorAll('video').length") == 0
    _go_to(opened, 0)


def test_comparison_page_goes_on_from_the_frame_that_is_shown_when_it_is_scrolled(opened):
    opened.execute_async_script("showFrame(9).then(arguments[0])")
    opened.execute_script("groups[8].element.scrollIntoView()")
    wait_for(opened, "groups[8].slots.every((slot) => slot.video) && !starting", "loaded")
    assert not opened.execute_script("return playing")
    for i, (red, green, _, _) in enumerate(pixels(opened, "groups[8].slots.map((slot) => slot.video)")):
        assert abs(green - 90) <= 6 and abs(red - 80 * i) <= 12  # the reference is on the left
    wait_for(opened, "element('frame').textContent.startsWith('frame 9 of')", "told")
    opened.execute_script("element('play').click()")
    wait_for(opened, "videos.every((video) => !video.paused && video.currentTime > 1.3)", "playing")


def test_comparison_page_shows_tables_notes_and_plane_and_nothing_in_it_is_code(opened):
    assert [each.text for each in opened.find_elements(By.TAG_NAME, "h2")][:2] == ["Means", "Differences to fresco"]
    rows = opened.find_elements(By.CSS_SELECTOR, "#tables tr")
    assert len(rows) == 4 + 3 and rows[2].text.startswith("spot 2 ")
    assert "</script>" in opened.find_element(By.ID, "notes").text and opened.title == "Comparison"
    assert opened.execute_script("return document.getElementById('plane').naturalWidth") > 500
    assert errors(opened) == []


def test_comparison_page_with_too_much_video_refers_to_the_run_folders(
    browser,  # noqa: F811
    evaluation,
    monkeypatch,
    tmp_path,
):
    monkeypatch.setattr(page, "EMBED_LIMIT_BYTES", 10)
    shutil.copytree(evaluation, tmp_path / "moved")  # together with its runs
    report.write_comparison(tmp_path / "moved")
    open_page(browser, tmp_path / "moved" / "report" / "comparison.html")
    _choose(browser, order="none")
    _go_to(browser, 11)  # its name is not one for an address
    sources = browser.execute_script("return groups[11].slots.map((s) => s.video.src)")
    assert sources == [
        (tmp_path / "moved" / method / PICTURES[11] / "video.mp4").as_uri() for method in ("fresco", "spot")
    ]
    wait_for(browser, "videos.every((video) => video.currentTime > 0.3)", "playing")
    assert (tmp_path / "moved" / "report" / "comparison.html").stat().st_size < 300_000
