"""Previews in a terminal: sequences that carry the picture, where one that shows pictures is at the other end."""

import io
import os
import re
import threading
from base64 import b64decode
from unittest import mock

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from fresco_dist.jobs.preview import lay_out
from fresco_dist.jobs.progress import Phase, Progress, ProgressLine, nobody
from fresco_dist.jobs.terminal import encoder_for, iterm2, kitty, shows_previews
from fresco_dist.schedule.graph import Task
from fresco_dist.schedule.trace import TaskRecord

FRAMES = np.random.default_rng(0).integers(0, 255, (3, 30, 60, 3), dtype=np.uint8)
KITTY = re.compile(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\")
ITERM2 = re.compile(r"\x1b\]1337;File=([^:]*):([^\x07]*)\x07")


def run_in_pty(environment: dict[str, str], num_previews: int = 1) -> str:
    """What a terminal gets of a progress line with previews above it."""
    ours, theirs = os.openpty()
    received: list[bytes] = []

    def read() -> None:
        try:
            while data := os.read(ours, 65536):
                received.append(data)
        except OSError:  # the other end is closed
            pass

    reader = threading.Thread(target=read)
    reader.start()
    with open(theirs, "w") as terminal:
        console = Console(file=terminal, width=80, height=24, force_terminal=True, color_system=None)
        listener = shows_previews(console, environment)
        with ProgressLine(console, {"predict": Phase("denoise", 4, 2)}, listener) as line:
            for step in range(num_previews):
                line(TaskRecord(Task("predict", step), 0, 0.0, 0.0, 0.0))
                line.show(FRAMES, step + 1, 0)
    reader.join()
    os.close(ours)
    return b"".join(received).decode()


def decoded(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(b64decode(text, validate=True))))


def test_kitty_gets_the_picture_in_chunks_and_answers_nothing():
    received = run_in_pty({"TERM": "xterm-kitty"})
    chunks = KITTY.findall(received)
    first, *others = (dict(entry.split("=") for entry in keys.split(",")) for keys, _ in chunks)
    assert {"a": "T", "f": "100", "q": "2", "C": "1"}.items() <= first.items()
    assert all(keys.keys() == {"m"} for keys in others) and len(chunks) > 1
    assert [int(keys["m"]) for keys in (first, *others)] == [1] * len(others) + [0]
    assert all(len(data) <= 4096 and len(data) % 4 == 0 for _, data in chunks)
    shown = decoded("".join(data for _, data in chunks))
    assert np.array_equal(shown, np.asarray(lay_out(FRAMES, (60, 30))))


@pytest.mark.parametrize("environment", [{"TERM_PROGRAM": "iTerm.app"}, {"LC_TERMINAL": "iTerm2"}])
def test_iterm2_gets_the_picture_in_one(environment):
    ((keys, data),) = ITERM2.findall(run_in_pty(environment))
    keys = dict(entry.split("=") for entry in keys.split(";"))
    assert keys["inline"] == "1" and int(keys["size"]) == len(b64decode(data))
    assert np.array_equal(decoded(data), np.asarray(lay_out(FRAMES, (60, 30))))


def test_progress_line_stays_below_the_pictures():
    """Every picture has rows of its own above the line, and the cursor comes back to where they end."""
    received = run_in_pty({"TERM": "xterm-kitty"}, num_previews=2)
    marked = KITTY.sub("", received).replace("\r\n", "\n")
    rooms = list(re.finditer(r"(\n+)\x1b\[(\d+)A\x1b7\x1b8\x1b\[(\d+)B", marked))
    assert len(rooms) == 2
    for room in rooms:
        rows = {len(room[1]), int(room[2]), int(room[3])}
        assert len(rows) == 1 and 1 <= rows.pop() <= 16
        assert "denoise step" in marked[room.end() :]  # drawn again below


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"TERM": "xterm-256color", "TERM_PROGRAM": "Apple_Terminal"},
        {"TERM": "xterm-kitty", "TMUX": "/tmp/tmux-0/default,1,0"},
        {"TERM": "screen.xterm-256color", "KITTY_WINDOW_ID": "1"},
    ],
)
def test_other_terminals_get_no_picture(environment):
    terminal = mock.Mock(isatty=lambda: True)
    assert shows_previews(Console(file=terminal, force_terminal=True), environment) is nobody
    assert shows_previews(Console(file=terminal, force_terminal=True), {"TERM": "xterm-kitty"}) is not nobody
    assert not re.search(r"\x1b_G|\x1b\]1337", run_in_pty(environment))


def test_what_is_no_terminal_gets_no_picture():
    """Nor a file that rich is told to take for one."""
    for console in (Console(file=io.StringIO()), Console(file=io.StringIO(), force_terminal=True)):
        assert shows_previews(console, {"TERM": "xterm-kitty"}) is nobody


def test_encoder_is_that_of_the_terminal():
    assert encoder_for({"TERM": "xterm-256color", "KITTY_WINDOW_ID": "3"}) is kitty
    assert encoder_for({"TERM": "xterm-ghostty", "TERM_PROGRAM": "ghostty"}) is kitty
    assert encoder_for({"TERM": "xterm-256color", "TERM_PROGRAM": "WezTerm"}) is iterm2


def test_progress_without_a_preview_shows_none():
    ours, theirs = os.openpty()
    with open(theirs, "w") as terminal:
        shows_previews(Console(file=terminal), {"TERM": "xterm-kitty"})(Progress("denoise", 1, 2))
        os.write(theirs, b"end")
        assert os.read(ours, 100) == b"end"
    os.close(ours)
