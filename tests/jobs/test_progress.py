"""The progress line, on a clock of its own."""

from io import StringIO
from types import SimpleNamespace

import pytest
from rich.console import Console

from fresco_dist.jobs import progress
from fresco_dist.schedule.dispatch import Task
from fresco_dist.schedule.trace import TaskRecord


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    """The clock of the progress line."""
    now = SimpleNamespace(s=0.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: now.s)
    return now


def _predict(line: progress.ProgressLine, clock, step: int, seconds: float) -> None:
    clock.s += seconds
    line(TaskRecord(Task("predict", step), 0, clock.s - seconds, clock.s, 0.0))


def test_progress_in_a_log_is_a_line_every_ten_seconds_and_at_the_end(clock):
    out = StringIO()
    with progress.ProgressLine(Console(file=out, width=40), {"predict": progress.Phase("denoise", 8, 2)}) as line:
        for i in range(8):
            _predict(line, clock, i // 4, 4.0)
            if i % 4 == 3:
                line(TaskRecord(Task("commit", i // 4), 0, clock.s, clock.s, 0.0))
    assert out.getvalue().splitlines() == [
        "denoise step 1/2: tiles 3/8, 0.25 tiles/s, 20 s left",
        "denoise step 2/2: tiles 6/8, 0.25 tiles/s, 8 s left",
        "denoise step 2/2: tiles 8/8, 0.25 tiles/s, 0 s left",
    ]


def test_progress_rate_leaves_out_what_came_before_the_first_tile(clock):
    """Loading and the prior take time of their own: they must not make the forecast longer."""
    out = StringIO()
    with progress.ProgressLine(Console(file=out), {"predict": progress.Phase("denoise", 4000, 2)}) as line:
        clock.s = 600.0
        _predict(line, clock, 0, 2.0)
        for _ in range(5):
            _predict(line, clock, 0, 2.0)
    assert out.getvalue().splitlines() == [
        "denoise step 1/2: tiles 1/4000",
        "denoise step 1/2: tiles 6/4000, 0.5 tiles/s, 2 h 13 min left",
    ]


def test_progress_rate_counts_tiles_that_run_side_by_side(clock):
    out = StringIO()
    with progress.ProgressLine(Console(file=out), {"predict": progress.Phase("denoise", 40, 1)}) as line:
        for seconds in (20.0, 0.0, 0.0, 0.0):
            clock.s += seconds
            line(TaskRecord(Task("predict", 0), 0, clock.s - 20.0, clock.s, 0.0))
        _predict(line, clock, 0, 20.0)
    assert out.getvalue().splitlines() == [
        "denoise step 1/1: tiles 1/40",
        "denoise step 1/1: tiles 5/40, 0.12 tiles/s, 4 min 40 s left",
    ]


def test_progress_in_a_terminal_is_one_line_redrawn_and_gone_at_the_end(clock):
    out = StringIO()
    console = Console(file=out, force_terminal=True, width=100)
    with progress.ProgressLine(console, {"predict": progress.Phase("denoise", 3, 1)}) as line:
        assert "waiting for the first tile" in out.getvalue()
        _predict(line, clock, 0, 12.0)
        line._live.refresh()
        assert "denoise step 1/1" in out.getvalue() and "tiles/s" not in out.getvalue()
        _predict(line, clock, 0, 12.0)
        line._live.refresh()
        assert "0.083 tiles/s, 12 s left" in out.getvalue()
        _predict(line, clock, 0, 12.0)
    assert "denoise step 1/1:" not in out.getvalue()  # the form of a log
    assert out.getvalue().endswith("\x1b[2K")  # the line is wiped
