"""Previews: a picture of every step in the run folder while it runs, no bit of the video changed, never a failure."""

import io
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import run_json
from PIL import Image
from rich.console import Console

from fresco_dist.jobs import run as run_module
from fresco_dist.jobs.caller import Caller
from fresco_dist.jobs.folder import RunFolder
from fresco_dist.jobs.preview import BOX_PX, Looks, encode_png, lay_out
from fresco_dist.jobs.progress import Progress
from fresco_dist.method.grid import Window
from fresco_dist.models.wan.model import WanBackbone
from fresco_dist.schedule.graph import Task
from fresco_dist.schedule.trace import TaskRecord

NUM_STEPS = 3


@pytest.fixture
def shown(monkeypatch) -> list[tuple[str, bytes]]:
    """Every preview that is written: the folder's name, and the PNG that lies there."""
    found, show = [], RunFolder.show

    def noted(folder: RunFolder, name: str, data: bytes) -> None:
        show(folder, name, data)
        assert name == "preview.png" and (folder.path / name).read_bytes() == data
        assert not list(folder.path.glob(".partial-preview*"))
        found.append((folder.path.name, data))

    monkeypatch.setattr(RunFolder, "show", noted)
    return found


@pytest.fixture
def heard(monkeypatch) -> list[Progress]:
    """What a listener is told at the end of steps."""
    found, run = [], run_module.run  # looked up at every call

    def listen(progress: Progress) -> None:
        found.extend([progress] if progress.preview is not None else [])

    def listening(requests, pool, caller):
        return run(requests, pool, replace(caller, listener=listen))

    monkeypatch.setattr(run_module, "run", listening)
    return found


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def test_preview_is_there_after_every_step_and_gone_with_the_run(command, folder, shown, heard):
    """The thumbnail's steps first: the video's begin late, and none of them is followed by one of the thumbnail's."""
    done = command()
    assert done.returncode == 0, done.stderr
    assert not (folder / "preview.png").exists() and "no preview" not in done.stdout
    assert "preview.png" not in run_json(folder)["products"]
    assert [told.step for told in heard][-NUM_STEPS:] == [1, 2, 3] and {told.step for told in heard[:-NUM_STEPS]} <= {0}
    assert len(shown) == len(heard) and {told.num_steps for told in heard} == {NUM_STEPS}
    assert heard[-1].preview.shape == (2, 12, 24, 3)  # 5 frames are two latent ones
    assert pixels(shown[-1][1]).shape == (48 + 4 + 48, 96, 3)
    with_previews = run_json(folder)["latents_sha256"]
    shown.clear()
    assert command("preview=false", f"hydra.run.dir={folder}2").returncode == 0
    assert not shown and run_json(folder.with_name("out2"))["latents_sha256"] == with_previews


def test_preview_switched_off_or_on_does_not_run_a_finished_run_again(command, shown):
    assert command("preview=false").returncode == 0
    done = command()
    assert "already" in done.stdout and not shown


@pytest.mark.parametrize("mode", ["wavefront", "allreduce"])
def test_preview_on_two_workers_is_that_of_one(command, ray_command, folder, shown, mode):
    overrides = (f"dispatch.mode={mode}", "fusion=multidiffusion")
    assert command(*overrides).returncode == 0
    alone, digest = [data for _, data in shown], run_json(folder)["latents_sha256"]
    shown.clear()
    done = ray_command(*overrides, "cluster.num_workers=2", f"hydra.run.dir={folder}2")
    assert done.returncode == 0, done.stderr
    assert [data for _, data in shown] == alone and len(alone) == NUM_STEPS
    assert run_json(folder.with_name("out2"))["latents_sha256"] == digest


def test_preview_stays_where_a_run_stops_and_goes_on_from_there(command, folder, shown, heard):
    overrides = ("fusion=multidiffusion",)
    assert command(*overrides, "sampler.stop_after=1").returncode == 0
    assert [told.step for told in heard] == [1] and (folder / "preview.png").read_bytes() == shown[-1][1]
    assert command(*overrides).returncode == 0
    assert [told.step for told in heard] == [1, 2, 3]
    assert len({data for _, data in shown}) == 3 and not (folder / "preview.png").exists()


def test_preview_of_every_point_of_a_sweep_is_its_own(command, tmp_path, shown, heard):
    sweep = tmp_path / "sweep"
    done = command("seed=0,1", "fusion=multidiffusion", f"hydra.sweep.dir={sweep}", flags=("-m",))
    assert done.returncode == 0, done.stderr
    last = dict(shown)
    assert last.keys() == {"0", "1"} and last["0"] != last["1"] and len(shown) == 2 * NUM_STEPS
    assert sorted((told.run, told.step) for told in heard) == [(run, step) for run in (0, 1) for step in (1, 2, 3)]
    assert not list(sweep.rglob("preview.png"))


def test_preview_that_cannot_be_made_costs_no_run(command, folder, shown, monkeypatch):
    assert command().returncode == 0
    digest = run_json(folder)["latents_sha256"]
    shown.clear()

    def fail(*_: object) -> None:
        raise MemoryError("no room on the GPU")

    monkeypatch.setattr(WanBackbone, "encode_clip", fail)
    done = command(f"hydra.run.dir={folder}2")
    assert done.returncode == 0 and not shown
    assert done.stdout.count("note      there is no preview: MemoryError: no room on the GPU") == 1
    assert run_json(folder.with_name("out2"))["latents_sha256"] == digest


def test_preview_that_cannot_be_written_costs_no_run(tmp_path):
    RunFolder(tmp_path / "gone").show("preview.png", b"")
    (tmp_path / "preview.png").mkdir()
    RunFolder(tmp_path).show("preview.png", b"")
    assert not list(tmp_path.glob(".partial*"))


def test_looks_complete_a_step_cell_by_cell_in_any_order_and_twice():
    level = SimpleNamespace(cells=(Window(0, 0, 2, 1), Window(0, 1, 2, 3)), canvas=(2, 4))
    looks, parts = Looks(), [np.full((3, 2, 1, 3), 1, np.uint8), np.full((3, 2, 3, 3), 2, np.uint8)]

    def record(step: int, cell: int) -> TaskRecord:
        task = Task("fuse", step, cell, of=f"canvas {step}")
        return TaskRecord(task, 0, 0.0, 0.0, 0.0, looks={cell: parts[cell] + 10 * step})

    assert all(looks.take(record(*of), level) is None for of in ((0, 1), (1, 1), (0, 1)))
    for step in (0, 1):
        frames = looks.take(record(step, 0), level)
        assert (frames == np.array([1, 2, 2, 2])[:, None] + 10 * step).all() and frames.shape == (3, 2, 4, 3)


@pytest.mark.parametrize(
    ("cells", "size_px", "expected"),
    [
        ((270, 480), (3840, 2160), (1280, 239)),  # beside each other
        ((480, 270), (2160, 3840), (1223, 720)),
        ((60, 480), (3840, 480), (1280, 488)),  # a frieze: above each other
        ((8, 16), (64, 40), (200, 40)),  # never larger than the video
    ],
)
def test_layout_shows_the_frames_as_large_as_the_box_allows(cells, size_px, expected):
    frames = np.zeros((3, *cells, 3), np.uint8) + np.array([50, 100, 150], np.uint8)[:, None, None, None]
    sheet = lay_out(frames, size_px)
    assert all(abs(side - other) <= 1 for side, other in zip(sheet.size, expected)), sheet.size
    assert all(side <= most for side, most in zip(sheet.size, BOX_PX))
    colours = np.unique(pixels(encode_png(sheet)))
    assert colours.tolist() == [50, 100, 150, 255]


def test_listener_hears_of_runs_by_their_numbers_among_all():
    heard = []
    Caller(Console(), heard.append).of([3, 5, 8]).of([0, 2]).listener(Progress("denoise", 1, 2, run=1))
    assert heard == [Progress("denoise", 1, 2, run=8)]
