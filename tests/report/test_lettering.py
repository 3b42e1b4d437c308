"""Labels in scripts that the usual font lacks, long ones, and sweeps in nested folders."""

import subprocess
import sys

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from PIL import Image, ImageDraw
from test_report import make_run

from fresco_dist import report
from fresco_dist.report import lettering
from fresco_dist.report.lettering import Lettering, ranges
from fresco_dist.report.page import write_page
from fresco_dist.report.points import read_points, shorten
from fresco_dist.report.table import rows

WATER, FIRE, LIFE = "\u6c34", "\u706b", "\ue123"  # of the last no font knows anything
SIDES = {WATER: 900, FIRE: 300}  # of the squares that stand for them in the font below


@pytest.fixture
def font(tmp_path, monkeypatch):
    """The one font of the system: it has water and fire."""
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", *(f"square{side}" for side in SIDES.values())])
    builder.setupCharacterMap({ord(letter): f"square{side}" for letter, side in SIDES.items()})
    glyphs = {}
    for name, side in ({".notdef": 0} | {f"square{side}": side for side in SIDES.values()}).items():
        pen = TTGlyphPen(None)
        pen.moveTo((0, 0))
        for place in ((0, side), (side, side), (side, 0)):
            pen.lineTo(place)
        pen.closePath()
        glyphs[name] = pen.glyph()
    builder.setupGlyf(glyphs)
    builder.setupHorizontalMetrics({name: (1000, 0) for name in glyphs})
    builder.setupHorizontalHeader(ascent=1000, descent=0)
    builder.setupNameTable({"familyName": "Squares", "styleName": "Bold"})
    builder.setupOS2(usWeightClass=700)
    builder.setupPost()
    path = tmp_path / "squares.ttf"
    builder.save(path)
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    monkeypatch.setattr(lettering.font_manager, "findSystemFonts", lambda: [str(tmp_path / "broken.ttf"), str(path)])
    lettering._system_fonts.cache_clear()
    yield path
    lettering._system_fonts.cache_clear()


def _drawn(text: str) -> np.ndarray:
    letters, picture = Lettering([text]), Image.new("L", (60, 20), "white")
    letters.draw(ImageDraw.Draw(picture), 0, 15, letters.shown(text))
    return np.asarray(picture) < 128


def test_lettering_takes_a_font_that_has_the_letters(font):
    assert Lettering([WATER]).shown(f"a{WATER}{LIFE}\n") == f"a{WATER}{lettering.BOX}"
    assert Lettering(["b"]).shown(WATER) == lettering.BOX  # that font was not needed for what is known beforehand
    assert 70 < _drawn(WATER).sum() < 130 and _drawn(FIRE).sum() < 20  # squares of 11 px times 0.9 and 0.3


def test_lettering_without_such_a_font_shows_boxes_and_nothing_for_what_is_invisible(monkeypatch):
    monkeypatch.setattr(lettering, "_system_fonts", list)
    assert Lettering([WATER]).shown(f"{WATER}\U000e0041 x") == f"{lettering.BOX} x"


def test_report_tells_labels_apart_whatever_their_letters(font, tmp_path, capfd, caplog, recwarn):
    for i, note in enumerate((WATER, FIRE, LIFE, "costs $x_{$ and $y}$")):
        for strength in (0.0, 1.0):
            make_run(tmp_path / "sweep" / str(2 * i + int(strength)), strength=strength, note=note)
    report.write(tmp_path / "sweep")
    assert capfd.readouterr() == ("", "") and not caplog.records and not list(recwarn)
    page = (tmp_path / "sweep" / "report" / "index.html").read_text(encoding="utf-8")
    assert '"caption": "5: prior_strength 1, note \\ue123"' in page


def test_plane_legend_has_numbers_beside_what_runs_share(sweep_of_notes, monkeypatch):
    labels = []
    monkeypatch.setattr("matplotlib.axes.Axes.legend", lambda axes, **_: labels.extend(_labels(axes)))
    report.write(sweep_of_notes)
    assert labels[:2] == ["0-1: cutoff 0.0, note a", f"2-3: cutoff 0.0, note {'b' * 12}...{'b' * 25}end"]


def _labels(axes) -> list[str]:
    return [handle.get_label() for handle in axes.get_legend_handles_labels()[0]]


@pytest.fixture
def sweep_of_notes(tmp_path):
    for i, note in enumerate(("a", "b" * 500 + "end")):
        for strength in (0.0, 1.0):
            cutoff = 0.5 * (i + strength > 9)
            make_run(tmp_path / str(2 * i + int(strength)), strength=strength, note=note, cutoff=cutoff)
    make_run(tmp_path / "9", strength=0.0, note="a", cutoff=0.5)
    return tmp_path


def test_label_keeps_both_ends_of_a_long_value(sweep_of_notes):
    (label,) = {point.label for point in read_points(sweep_of_notes) if point.number == "2"}
    assert label == f"prior_strength 0, cutoff 0, note {'b' * 39}...{'b' * 35}end"
    assert shorten("abcdef", lambda text: len(text) <= 5) == "a...f"
    assert ranges(["3", "0", "1", "2", "7", ""]) == "0-3, 7"


def test_points_of_nested_folders_are_named_by_what_varies(tmp_path):
    for folder, seed in (("a/10", 0), ("a/9", 1), ("b/9", 2)):
        make_run(tmp_path / "sweep" / "all" / folder, strength=0.0, seed=seed)
    points = read_points(tmp_path / "sweep")
    assert [(point.number, point.name) for point in points] == [("0", "a/9"), ("1", "a/10"), ("2", "b/9")]
    assert list(rows(points)[0])[:2] == ["number", "run"]
    write_page(tmp_path / "index.html", points, None)
    assert '"caption": "1: seed 0"' in (tmp_path / "index.html").read_text()
    made = subprocess.run([sys.executable, "-m", "fresco_dist.report", tmp_path / "sweep"], capture_output=True)
    assert made.returncode == 0 and (tmp_path / "sweep" / "report" / "table.csv").read_text().count("done") == 3


def test_report_whose_list_nobody_reads_is_written_all_the_same(tmp_path):
    make_run(tmp_path / "0", strength=0.0)
    command = f"{sys.executable} -m fresco_dist.report {tmp_path} | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and (tmp_path / "report" / "index.html").exists()
