"""What a command meets where it is started: who reads along, TMPDIR, folders, what is asked of Hydra besides."""

import errno
import io
import os
import subprocess
import sys
import threading
from pathlib import Path
from unittest import mock

import pytest
from conftest import make_picture, run_json
from make_jobs import make_config

from fresco_dist.config import InputError
from fresco_dist.jobs.folder import PRODUCTS
from fresco_dist.report.points import read_points
from fresco_dist.runtime import ray_cluster, ray_folder
from fresco_dist.runtime.ray_folder import choose_ray_folder
from fresco_dist.runtime.streams import LastingFile

QUICK = (
    "model=synthetic", "model.forward_s=0", "sampler.num_steps=1", "video.num_frames=5", "video.max_size=[128,80]",
    "tiles.window=[64,96]", "prior.area=4096", "cluster.executor=inprocess",
)  # fmt: skip


def typed(line: str, folder: Path, *overrides: str, **environment: str) -> subprocess.CompletedProcess:
    """A line for bash, in which COMMAND is a quick run with these overrides."""
    command = " ".join(f"'{part}'" for part in (sys.executable, "-m", "fresco_dist.launch", *QUICK, *overrides))
    own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.run(
        ["bash", "-c", line.replace("COMMAND", command)], cwd=folder, capture_output=True, text=True, timeout=120,
        env=own | environment,
    )  # fmt: skip


@pytest.mark.parametrize(
    "line",
    [
        "COMMAND | head -1; exit ${PIPESTATUS[0]}",
        "COMMAND >&- 2>&- <&-",
        "COMMAND >/dev/full 2>&1",
    ],
)
def test_run_goes_on_to_its_end_when_nobody_reads_what_it_says(line, tmp_path):
    done = typed(line, tmp_path, "hydra.run.dir=out", PYTHONUNBUFFERED="1" if "head" in line else "")
    assert (done.returncode, done.stderr) == (0, "")
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(PRODUCTS)


def test_error_that_nobody_reads_has_its_exit_code(tmp_path):
    done = typed("COMMAND 2>&1 >/dev/null | true; exit ${PIPESTATUS[0]}", tmp_path, "image=none.png")
    assert done.returncode == 2
    assert typed("COMMAND 2>&-", tmp_path, "image=none.png").returncode == 2


def test_letters_that_the_terminal_lacks_do_not_end_a_run(tmp_path):
    done = typed("COMMAND", tmp_path, 'image="b\u00fccher.png"', PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (2, "error: image: no such file: b\\xfccher.png. Check the path.\n")


def test_slow_reader_of_a_pipe_that_does_not_block_gets_all_of_a_text():
    """As when the pipe is shared with a program that has set it so; it holds 64 KB."""
    text, got = b"0123456789" * 100_000, io.BytesIO()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with open(reader, "rb") as source:
        thread = threading.Thread(target=lambda: got.write(source.read()))
        with LastingFile(writer, "w") as stream:
            stream.write(b"." * 65536)
            thread.start()
            assert stream.write(text) == len(text)
        thread.join()
    assert got.getvalue()[65536:] == text


def test_command_in_a_folder_that_is_gone_says_so(tmp_path):
    (tmp_path / "gone").mkdir()
    done = typed("rmdir ../gone; COMMAND", tmp_path / "gone", f"hydra.run.dir={tmp_path}/out")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: The folder in which the command was started is gone. Start it in another one.\n"


# Ray's folder


def test_run_with_a_tmpdir_that_is_too_long_works_and_says_where_sockets_are(tmp_path):
    long = tmp_path / ("x" * 100)
    long.mkdir()
    done = typed(
        "COMMAND", tmp_path, "hydra.run.dir=out", "cluster.executor=ray", "cluster.num_workers=1", TMPDIR=str(long)
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert f"note      TMPDIR={long} is not for Ray (longer than 39 bytes): its sockets are in /tmp\n" in done.stdout


def test_folder_of_ray_that_cannot_be_had_is_told_in_one_line(tmp_path):
    blocked = tmp_path / "file"
    blocked.touch()
    with mock.patch.object(ray_folder, "OTHERS", (str(blocked),)), mock.patch.object(ray_folder, "MAX_BYTES", 4096):
        environment = {"TMPDIR": str(blocked / "tmp")}
        with pytest.raises(InputError, match=r"^TMPDIR must be a folder for Ray's sockets, .*Not a directory"):
            choose_ray_folder(environment)


@pytest.mark.parametrize(
    "name, value, fault",
    [("TMPDIR", "/tmp/\u00fc", "letters beyond ASCII"), ("RAY_TMPDIR", "/proc/none", os.strerror(errno.ENOENT))],
)
def test_folder_of_ray_is_another_where_the_given_one_is_of_no_use(name, value, fault):
    environment = {name: value}
    assert choose_ray_folder(environment) == f"{name}={value} is not for Ray ({fault}): its sockets are in /tmp"
    assert environment["RAY_TMPDIR"] == "/tmp"
    assert choose_ray_folder(environment) == ""  # said once


def test_folders_that_ray_does_not_need_are_left_alone(tmp_path, monkeypatch):
    folders = [tmp_path / name for name in ("given", "first", "second")]
    monkeypatch.setattr(ray_folder, "MAX_BYTES", 4096)
    monkeypatch.setattr(ray_folder, "OTHERS", tuple(map(str, folders[1:])))
    choose_ray_folder({"TMPDIR": str(folders[0])})
    assert [folder.exists() for folder in folders] == [True, False, False]
    choose_ray_folder({"TMPDIR": "/proc/none"})
    assert [folder.exists() for folder in folders] == [True, True, False]


def test_folder_of_ray_is_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ray_folder, "MAX_BYTES", 4096)
    environment = {"TMPDIR": "temporary"}
    assert choose_ray_folder(environment) == "" and environment["RAY_TMPDIR"] == str(tmp_path / "temporary")
    environment = {"TMPDIR": ""}
    assert choose_ray_folder(environment) == "" and environment["RAY_TMPDIR"] == "/tmp"


# What is asked of Hydra besides


def test_typed_paths_lie_where_the_command_was_started_with_chdir(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_picture(64, 32).save(tmp_path / "near.png")
    done = command("image=near.png", "hydra.job.chdir=true", "hydra.run.dir=out")
    assert done.returncode == 0, done.stderr
    assert run_json(tmp_path / "out")["config"]["image"] == "near.png"  # as typed
    done = command("image=near.png", "hydra.job.chdir=true", "hydra.sweep.dir=sweep", "seed=1,2", flags=("-m",))
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "sweep").iterdir() if path.is_dir()) == ["0", "1", "report"]


def test_report_of_a_sweep_has_the_points_of_all_its_folders(command, tmp_path):
    sweep = tmp_path / "sweep"
    subdir = "hydra.sweep.subdir=${fusion.method}/${seed}"
    done = command("fusion=fresco,multidiffusion", "seed=1,2", subdir, f"hydra.sweep.dir={sweep}", flags=("-m",))
    assert done.returncode == 0, done.stderr
    assert [path.parent for path in tmp_path.rglob("report")] == [sweep]
    names = [point.name for point in read_points(sweep)]
    assert names == ["fresco/1", "fresco/2", "multidiffusion/1", "multidiffusion/2"]


def test_point_outside_the_folder_of_its_sweep_is_refused(command, tmp_path):
    done = command("seed=1,2", "hydra.sweep.subdir=../${seed}", f"hydra.sweep.dir={tmp_path}/sweep", flags=("-m",))
    assert done.returncode == 2
    line = f"error: hydra.sweep.subdir must be a folder below {tmp_path}/sweep, the sweep's; got ../1."
    assert done.stderr.startswith(line)


@pytest.mark.parametrize(
    "overrides, remedy",
    [
        (["cluster.num_workers=4"], "4 workers need 4 CPUs; 2 are there. cluster.num_workers=2 comes to the same"),
        (["cluster.cpus_per_worker=8"], "1 workers need 8 CPUs; 2 are there. Try cluster.cpus_per_worker=2."),
    ],
)
def test_remedy_for_too_many_workers_keeps_the_bits_where_it_can(overrides, remedy):
    with pytest.raises(InputError) as refused:
        ray_cluster.choose_num_workers(make_config("cluster.executor=ray", *overrides).cluster, [{"CPU": 2.0}])
    assert remedy in str(refused.value)
