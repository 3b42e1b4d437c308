"""What cannot be written costs its own run, in one line; nothing half-written is left, and the others go on."""

import errno
import os
import subprocess
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from unittest import mock

import pytest
from conftest import TINY_RUN, forwards_of, make_picture, products_of, run_here, run_json

from fresco_dist.jobs.folder import PRODUCTS, RunFolder, WriteError
from fresco_dist.runtime.worker import Worker

FULL = OSError(errno.ENOSPC, "No space left on device")
LINE = "{} could not be written to {}: No space left on device. Make room there, or give another folder."


@pytest.fixture
def disk_full_at(monkeypatch) -> Callable[..., None]:
    """Writing a product fails half-way; of all runs, or of those whose folder has this name."""

    def fill(product: str, run: str | None = None) -> None:
        write = RunFolder.write

        def write_half(folder: RunFolder, name: str, writer: Callable[[Path], object]) -> None:
            def fail(partial: Path) -> None:
                writer(partial)
                os.truncate(partial, partial.stat().st_size // 2)
                raise FULL

            write(folder, name, fail if name == product and run in (None, folder.path.name) else writer)

        monkeypatch.setattr(RunFolder, "write", write_half)

    return fill


def digests_of(folder: Path) -> dict[str, str]:
    """Of the products that are there, but for run.json."""
    names = products_of(folder) - {"run.json"}
    return {name: sha256((folder / name).read_bytes()).hexdigest() for name in names}


@pytest.fixture(scope="module")
def digest(tmp_path_factory, model_path) -> str:
    """Of the latents of a run that is not disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    make_picture(96, 48).save(folder / "picture.png")
    places = [f"image={folder / 'picture.png'}", f"model.path={model_path}", f"hydra.run.dir={folder / 'out'}"]
    assert run_here(["cluster.executor=inprocess", *TINY_RUN, *places]) == 0
    return run_json(folder / "out")["latents_sha256"]


@pytest.mark.parametrize("product", PRODUCTS)
def test_product_that_cannot_be_written_ends_the_run_in_one_line(
    command, folder, disk_full_at, digest, monkeypatch, product
):
    disk_full_at(product)
    done = command()
    assert (done.returncode, done.stderr) == (1, f"error: {LINE.format(product, folder)}\n")
    assert product not in products_of(folder) and {path.name for path in folder.iterdir()} <= {
        "preview.png",
        *PRODUCTS,
        "starts.json",
        "store",
    }
    if product != "run.json":
        run = run_json(folder)
        assert run["status"] == "failed" and run["error"] == LINE.format(product, folder)
        assert run["products"] == digests_of(folder)
    monkeypatch.undo()  # there is room again
    assert command().returncode == 0
    assert run_json(folder)["latents_sha256"] == digest and products_of(folder) == set(PRODUCTS)
    assert forwards_of(folder) == 0 or product == "latents.safetensors"


def test_latents_that_cannot_be_saved_end_the_run_before_the_video_is_decoded(command, folder, disk_full_at):
    disk_full_at("latents.safetensors")
    with mock.patch.object(Worker, "_decode") as decode:
        done = command("dispatch.mode=allreduce")
    decode.assert_not_called()
    assert (done.returncode, done.stderr) == (1, f"error: {LINE.format('latents.safetensors', folder)}\n")


@pytest.mark.parametrize("product", ["latents.safetensors", "video.mp4", "run.json"])
@pytest.mark.parametrize("point", ["0", "1"])
def test_sweep_point_that_cannot_be_written_costs_itself_alone(command, tmp_path, disk_full_at, product, point):
    disk_full_at(product, point)
    sweep = tmp_path / "sweep"
    done = command("seed=0,1", f"hydra.sweep.dir={sweep}", flags=("-m",))
    assert (done.returncode, done.stderr) == (1, f"error: {LINE.format(product, sweep / point)}\n")
    other = sweep / ("1" if point == "0" else "0")
    assert run_json(other)["status"] == "done" and run_json(other)["products"] == digests_of(other)
    assert f"          {other}\n" in done.stdout
    assert (sweep / "report" / "table.md").exists()


def test_report_that_cannot_be_written_is_not_blamed_on_the_run_folder(command, tmp_path):
    sweep = tmp_path / "sweep"
    with mock.patch("fresco_dist.report.write_page", side_effect=FULL):
        done = command("seed=0,1", f"hydra.sweep.dir={sweep}", flags=("-m",))
    assert (done.returncode, done.stderr) == (1, f"error: {LINE.format('report', sweep)}\n")
    assert [run_json(sweep / point)["status"] for point in "01"] == ["done", "done"]


@pytest.mark.parametrize("function", ["os.fsync", "pathlib.Path.replace", "hashlib.file_digest"])
def test_file_that_cannot_be_finished_is_not_there(tmp_path, function):
    (tmp_path / "video.mp4").write_text("old")
    folder = RunFolder(tmp_path)
    with mock.patch(function, side_effect=FULL), pytest.raises(WriteError) as raised:
        folder.write("video.mp4", lambda partial: partial.write_text("new"))
    assert str(raised.value) == LINE.format("video.mp4", tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"video.mp4": "old"}


def test_old_run_json_is_gone_before_the_first_new_product_is_there(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "video.mp4").write_text("old")
    seen, replace = [], Path.replace

    def note(partial: Path, final: Path) -> Path:
        seen.append((tmp_path / "run.json").exists())
        return replace(partial, final)

    def write(partial: Path) -> None:
        assert (tmp_path / "run.json").exists()  # as long as all is as it was
        partial.write_text("new")

    with mock.patch.object(Path, "replace", note):
        RunFolder(tmp_path).write("video.mp4", write)
    assert seen == [False]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 KiB, at `tmp_path/sweep/0`."""
    path = tmp_path / "sweep" / "0"
    path.mkdir(parents=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", path], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield path
    subprocess.run(["umount", path], check=True)


def fill_up(disk: Path) -> None:
    """Leave no room on it."""
    with (disk / "filler").open("ab", buffering=0) as filler, pytest.raises(OSError, match="No space"):
        while True:
            filler.write(b"0" * 4096)


def test_store_on_a_full_disk_costs_nothing_but_what_it_would_have_saved(command, folder, small_disk, digest):
    fill_up(small_disk)
    done = command(f"store.path={small_disk}", "tiles.batch=null")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("nothing more is stored") == 1 and "No space left" in done.stdout
    assert run_json(folder)["latents_sha256"] == digest
    files = {path.name for path in small_disk.rglob("*") if path.is_file()}
    assert files == {"filler"}


def test_disk_that_is_full_indeed(command, small_disk):
    """One point of a sweep is on it, and room for some of its products."""
    done = command("seed=0,1", f"hydra.sweep.dir={small_disk.parent}", flags=("-m",))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line in {f"error: {LINE.format(name, small_disk)}" for name in PRODUCTS}
    assert {path.name for path in small_disk.iterdir()} < {*PRODUCTS, "starts.json", "preview.png"}
    if (small_disk / "run.json").exists():
        assert run_json(small_disk)["status"] == "failed" and run_json(small_disk)["products"] == digests_of(small_disk)
    assert run_json(small_disk.parent / "1")["status"] == "done"
    assert (small_disk.parent / "report" / "table.md").exists()
    fill_up(small_disk)
    done = command(f"hydra.run.dir={small_disk}")  # full before it begins
    assert done.returncode == 1 and "No space left on device. Make room there" in done.stderr
    assert len(done.stderr.splitlines()) == 1
