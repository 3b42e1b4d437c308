"""One folder, one run: the lock, and what a second command at the same folder is told."""

import errno
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
from unittest import mock

import pytest
from conftest import TINY_RUN

from fresco_dist.config import InputError
from fresco_dist.jobs.claim import LOCK, Claim
from fresco_dist.jobs.folder import PRODUCTS, RunFolder

OWNER = rf"process {os.getpid()} on \S+ since 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d\S+"
REFUSED = rf"hydra.run.dir must be a folder that no other run is using; got %s, in use by {OWNER}\. Wait for its end, "


def test_claim_keeps_others_out_until_it_is_released(tmp_path):
    with Claim(tmp_path) as claim:
        assert claim.unlocked == ""
        with pytest.raises(InputError, match=REFUSED % re.escape(str(tmp_path))):
            Claim(tmp_path)
    assert list(tmp_path.iterdir()) == []
    Claim(tmp_path).release()


def test_claim_of_a_run_that_was_killed_keeps_nobody_out(tmp_path):
    code = "import os, pathlib, sys; from fresco_dist.jobs.claim import Claim; Claim(pathlib.Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", f"{code}; os.kill(os.getpid(), 9)", tmp_path])
    left = (tmp_path / LOCK).read_text()
    with Claim(tmp_path):
        now = (tmp_path / LOCK).read_text()
        assert re.fullmatch(OWNER, now) and re.match(r"process \d+ on", left)[0] not in now


@pytest.mark.parametrize("third", [False, True])
def test_claim_is_on_the_file_that_others_find(tmp_path, monkeypatch, third):
    """Between opening and locking, the last owner removes its file, and a third run may have made one of its own."""
    lock, others = fcntl.flock, []

    def lock_late(file: int, operation: int) -> None:
        if not others:
            (tmp_path / LOCK).unlink()
            if third:
                (tmp_path / LOCK).write_text("of a third run, which has ended, too")
            others.append("the last owner")
        lock(file, operation)

    monkeypatch.setattr(fcntl, "flock", lock_late)
    with Claim(tmp_path), pytest.raises(InputError, match=OWNER):
        Claim(tmp_path)


def test_claim_that_cannot_be_written_is_not_held(tmp_path):
    full = OSError(errno.ENOSPC, "No space left on device")
    with mock.patch("os.pwrite", side_effect=full), pytest.raises(OSError, match="No space"):
        Claim(tmp_path)
    Claim(tmp_path).release()


def test_second_command_at_a_folder_is_refused_and_touches_nothing(command, folder):
    assert command().returncode == 0
    (folder / ".partial-video.mp4").write_text("what the first command is writing")
    with Claim(folder):
        before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
        done = command("seed=1")
        assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()} == before
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert re.match(f"error: {REFUSED % re.escape(str(folder))}or give another folder.", line)
    assert not RunFolder(folder).is_done({}, str) and command("seed=1").returncode == 0
    assert {path.name for path in folder.iterdir()} == set(PRODUCTS)


def test_command_holds_its_folder_while_it_runs(command, folder, picture_path):
    arguments = ["model=synthetic", "model.forward_s=0.5", "cluster.executor=inprocess", *TINY_RUN]
    arguments += [f"image={picture_path}", f"hydra.run.dir={folder}"]
    first = subprocess.Popen(
        [sys.executable, "-m", "fresco_dist.launch", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert first.stdout is not None
    assert any("encode" in line for line in first.stdout)  # reads until then
    first.send_signal(signal.SIGSTOP)  # however long the second takes
    try:
        second = command("seed=1")
    finally:
        first.send_signal(signal.SIGCONT)
    assert second.returncode == 2 and f"in use by process {first.pid} on " in second.stderr
    _, errors = first.communicate(timeout=240)
    assert (first.returncode, errors) == (0, "")
    run = json.loads((folder / "run.json").read_text())
    assert RunFolder(folder).is_done(run["config"], lambda: run["files_sha256"])
    assert {path.name for path in folder.iterdir()} == set(PRODUCTS)


def test_sweep_point_whose_folder_is_in_use_costs_itself_alone(command, tmp_path):
    sweep = tmp_path / "sweep"
    (sweep / "0").mkdir(parents=True)
    with Claim(sweep / "0"):
        done = command("seed=0,1", f"hydra.sweep.dir={sweep}", flags=("-m",))
        assert done.returncode == 2 and done.stderr.count("error: ") == 1 and f"got {sweep / '0'}, in" in done.stderr
    assert list((sweep / "0").iterdir()) == []
    assert json.loads((sweep / "1" / "run.json").read_text())["status"] == "done"
    assert (sweep / "report" / "table.md").exists()


def test_sweep_points_with_one_folder_are_refused_but_for_the_first(command, tmp_path):
    done = command("seed=0,1", f"hydra.sweep.dir={tmp_path}", "hydra.sweep.subdir=same", flags=("-m",))
    assert (
        done.returncode == 2
        and f"must be another one for each of the runs that go together; got {tmp_path / 'same'} twice" in done.stderr
    )
    assert json.loads((tmp_path / "same" / "run.json").read_text())["config"]["seed"] == 0


def test_file_system_without_locks_is_told_in_one_line(command, tmp_path):
    sweep = tmp_path / "sweep"
    with mock.patch("fcntl.flock", side_effect=OSError(errno.ENOLCK, "No locks available")):
        done = command("seed=0,1", f"hydra.sweep.dir={sweep}", flags=("-m",))
    assert (done.returncode, done.stderr) == (0, "")
    warnings = [line for line in done.stdout.splitlines() if line.startswith("warning")]
    assert warnings == ["warning   hydra.run.dir cannot be locked (No locks available): start no other run in it"]
    assert {path.name for path in (sweep / "0").iterdir()} == set(PRODUCTS)
