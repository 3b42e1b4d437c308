"""Runs that end early, and the same command typed again: what is stored, what is done again, and equal bits."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import forwards_of, make_model, make_picture, run_json
from make_jobs import make_job
from PIL import Image

from fresco_dist.jobs import clip, keeper, pool_run
from fresco_dist.jobs.keeper import Keeper
from fresco_dist.media import video
from fresco_dist.method.grid import flat, tile_cores
from fresco_dist.runtime import inprocess_executor
from fresco_dist.runtime.numerics import numerics
from fresco_dist.runtime.store import Store
from fresco_dist.schedule.tasks import run_graph

FORWARDS = 21  # 3 of the prior, 3 x 6 windows


def stored_in(folder: Path, kind: str) -> set[str]:
    """Entries of a kind in the store of a run folder."""
    return {path.name for path in (folder / "store").glob(f"*/{kind}-*")}


class PulledPlug(BaseException):
    """The run ends here, whatever it was at."""


@pytest.fixture(autouse=True)
def _at_every_step(monkeypatch):
    """Checkpoints however short the steps are and slow the disk is, and every tile noted."""
    monkeypatch.setattr(keeper, "SHARE", 1e9)
    monkeypatch.setattr(keeper, "FLUSH_TIMEOUT_S", 240.0)
    monkeypatch.setattr(clip, "NOTE_INTERVAL_S", 0.0)


@pytest.fixture(autouse=True)
def _raw_video(monkeypatch):
    """Every frame as it is, since an encoder's threads may decide a bit under load."""
    monkeypatch.setattr(video, "write_video", lambda path, frames, *_: path.write_bytes(frames.tobytes()))


@pytest.fixture
def end_after(monkeypatch):
    """Have the next runs end after so many tasks of a kind; None: not at all."""
    whole = pool_run.execute

    def end(kind: str, number: int | None) -> None:
        seen = []

        def execute(graph, executor, observe, *others):
            def count(record) -> None:
                observe(record)
                seen.extend([record] * (record.task.kind == kind))
                if len(seen) == number:
                    raise PulledPlug

            return whole(graph, executor, count, *others)

        monkeypatch.setattr(pool_run, "execute", execute if number else whole)

    return end


@pytest.fixture(scope="module")
def whole(tmp_path_factory, model_path, unipc_model_path) -> dict[str, dict]:
    """run.json of runs that were not disturbed, by scheduler; filled by `reference`."""
    return {}


@pytest.fixture
def reference(command, folder, tmp_path, whole, model_path, unipc_model_path):
    """The latents' digest of a run that is not disturbed."""

    def find(scheduler: str) -> str:
        if scheduler not in whole:
            path = {"euler": model_path, "unipc": unipc_model_path}[scheduler]
            done = command(f"model.path={path}", f"hydra.run.dir={tmp_path / 'whole'}")
            assert done.returncode == 0, done.stderr
            assert not (tmp_path / "whole" / "store").exists()
            whole[scheduler] = run_json(tmp_path / "whole")
        return whole[scheduler]["latents_sha256"]

    return find


@pytest.mark.parametrize("scheduler", ["euler", "unipc"])
@pytest.mark.parametrize("modes", [("wavefront", "allreduce"), ("allreduce", "wavefront")], ids="-".join)
def test_run_that_ended_in_mid_step_goes_on_in_either_mode(
    command, folder, end_after, reference, modes, scheduler, model_path, unipc_model_path
):
    path = f"model.path={ {'euler': model_path, 'unipc': unipc_model_path}[scheduler] }"
    end_after("predict", 3 + 6 + 6 + 5)  # in the last step
    with pytest.raises(PulledPlug):
        command(path, f"dispatch.mode={modes[0]}")
    assert len(stored_in(folder, "canvas")) == 2  # the latest of each level
    end_after("", None)
    plan = command(path, "plan_only=true", f"dispatch.mode={modes[1]}")
    assert "stored    step 2 of 3: 6 of 21 forwards left" in plan.stdout and "warning" not in plan.stdout
    done = command(path, f"dispatch.mode={modes[1]}")
    assert done.returncode == 0 and "stored    step 2 of 3: 6 of 21 forwards left" in done.stdout, done.stderr
    assert forwards_of(folder) == 6 and not (folder / "store").exists()
    assert run_json(folder)["latents_sha256"] == reference(scheduler)


@pytest.mark.parametrize(("kind", "number", "left"), [("encode_text", 1, 21), ("predict", 6, 20), ("decode", 1, 0)])
def test_run_that_ended_anywhere_goes_on(command, folder, end_after, reference, kind, number, left):
    """Before the first forward, in the prior, and when all is denoised: also encodings and decoded tiles are kept."""
    end_after(kind, number)
    with pytest.raises(PulledPlug):
        command()
    end_after("", None)
    assert command().returncode == 0
    assert forwards_of(folder) <= left
    assert run_json(folder)["latents_sha256"] == reference("euler")


def test_tiles_that_are_decoded_are_not_decoded_again(command, folder, end_after, tmp_path, picture_path):
    """Nor are their neighbours' edges lost: the video is the same."""
    make_picture(192, 96).save(picture_path)
    options = ("model.vae_tile=64", "tiles.window=[96,192]", "tiles.overlap=0")
    assert command(*options, f"hydra.run.dir={tmp_path / 'whole'}").returncode == 0
    end_after("blend", 7)  # of 2 x 4
    with pytest.raises(PulledPlug):
        command(*options)
    end_after("", None)
    assert command(*options).returncode == 0
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    decoded = sorted(event["name"] for event in events if event.get("cat") == "decode")
    assert 1 <= len(decoded) < 8, decoded  # what is missing, and those whose edges it takes
    names = ("video.mp4", "latents.safetensors", "contact_sheet.png")
    differ = [name for name in names if (folder / name).read_bytes() != (tmp_path / "whole" / name).read_bytes()]
    assert not differ


@pytest.mark.parametrize("changed", ["seed=1", "prompt=still", "picture", "model"])
def test_what_was_stored_for_another_run_is_not_taken(
    command, folder, end_after, picture_path, model_path, tmp_path, changed
):
    """Also where the command is the same, but a file has other contents."""
    model = tmp_path / "model"
    shutil.copytree(model_path, model)
    end_after("predict", 15)
    with pytest.raises(PulledPlug):
        command(f"model.path={model}")
    end_after("", None)
    if changed == "picture":
        make_picture(96, 48, seed=5).save(picture_path)
    elif changed == "model":
        shutil.rmtree(model)
        make_model(model, seed=3)
    done = command(f"model.path={model}", *([changed] if "=" in changed else []))
    assert done.returncode == 0 and forwards_of(folder) > 15, done.stderr
    again = command(f"model.path={model}", *([changed] if "=" in changed else []), f"hydra.run.dir={tmp_path / 'new'}")
    assert again.returncode == 0
    assert run_json(folder)["latents_sha256"] == run_json(tmp_path / "new")["latents_sha256"]


def test_run_stops_for_a_look_and_goes_on(command, folder, reference):
    looked = command("sampler.stop_after=2", "dispatch.mode=allreduce")
    assert looked.returncode == 0 and "has no effect with sampler.stop_after" in looked.stdout
    assert run_json(folder)["status"] == "paused" and "latents_sha256" not in {
        name for name, value in run_json(folder).items() if value
    }
    names = {path.name for path in folder.iterdir() if path.is_file()}
    assert {"preview.mp4", "preview_contact_sheet.png"} <= names
    assert names.isdisjoint({"video.mp4", "contact_sheet.png", "latents.safetensors"})
    assert "paused " in looked.stdout
    assert f"is stored: the same with hydra.run.dir={folder} and without sampler.stop_after goes on" in looked.stdout
    done = command()
    assert done.returncode == 0 and "stored    step 2 of 3: 6 of 21 forwards left" in done.stdout
    assert run_json(folder)["latents_sha256"] == reference("euler") and run_json(folder)["status"] == "done"
    assert not (folder / "preview.mp4").exists() and not (folder / "store").exists()


def test_estimate_of_the_last_step_is_what_the_run_ends_with(command, folder, tmp_path):
    """With Euler it is where the run goes to: one more step, at next to no noise, changes next to nothing."""
    levels = "sampler.sigmas=[1,0.6,0.3,0.0001]"
    steps = ("sampler.num_steps=4", "prior.num_steps=3", levels)
    assert command(*steps, "sampler.stop_after=3").returncode == 0
    assert command(*steps, f"hydra.run.dir={tmp_path / 'whole'}").returncode == 0
    preview = np.asarray(Image.open(folder / "preview_contact_sheet.png")).astype(float)
    video = np.asarray(Image.open(tmp_path / "whole" / "contact_sheet.png")).astype(float)
    assert abs(preview - video).mean() < 0.5


def test_store_of_the_users_own_keeps_what_the_next_run_can_use(command, folder, tmp_path):
    """Encodings, the prior and the latents; not the canvases on the way."""
    store = f"store.path={tmp_path / 'shared'}"
    assert command(store).returncode == 0
    kinds = sorted(path.name.partition("-")[0] for path in (tmp_path / "shared").glob("*/*"))
    assert kinds == ["canvas", "canvas", "inputs", "inputs", "text"]
    plan = command(store, "fusion.prior_strength=2", f"hydra.run.dir={tmp_path / 'other'}", "plan_only=true")
    assert "stored    prior, step 3 of 3: 18 of 21 forwards left" in plan.stdout
    done = command(store, f"hydra.run.dir={tmp_path / 'again'}")
    assert done.returncode == 0 and "0 of 21 forwards left" in done.stdout
    assert run_json(tmp_path / "again")["latents_sha256"] == run_json(folder)["latents_sha256"]
    assert (tmp_path / "again" / "video.mp4").read_bytes() == (folder / "video.mp4").read_bytes()


def test_run_without_a_store_keeps_nothing_and_begins_anew(command, folder, end_after):
    end_after("predict", 12)
    with pytest.raises(PulledPlug):
        command("store.enabled=false")
    assert not (folder / "store").exists()
    end_after("", None)
    assert command("store.enabled=false").returncode == 0 and forwards_of(folder) == FORWARDS


def damage(path: Path, how: str) -> None:
    """Have a file lack its end, or one bit in its middle be another."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content[: len(content) // 2] if how == "torn" else content)


@pytest.mark.parametrize("how", ["torn", "bit"])
@pytest.mark.parametrize(
    ("pattern", "left", "num_told"), [("*/canvas-*", 21, 2), ("*/[it]*-*", 12, 2), ("numerics.json", 12, 0)]
)
def test_damaged_file_of_the_store_is_made_again(command, folder, end_after, reference, how, pattern, left, num_told):
    """Canvases; encodings; the note of what they were made with, without which they are found all the same."""
    end_after("predict", 17)
    with pytest.raises(PulledPlug):
        command()
    end_after("", None)
    for path in (folder / "store").glob(pattern):
        damage(path, how)
    done = command()
    assert done.returncode == 0 and done.stdout.count("was damaged and is removed") == num_told, done.stdout
    assert forwards_of(folder) == left
    assert run_json(folder)["latents_sha256"] == reference("euler")


@pytest.mark.parametrize(("suffix", "how"), [("npy", "torn"), ("npy", "bit"), ("json", "torn")])
def test_damaged_clip_is_decoded_again(command, folder, end_after, tmp_path, picture_path, suffix, how):
    make_picture(192, 96).save(picture_path)
    options = ("model.vae_tile=64", "tiles.window=[96,192]", "tiles.overlap=0")
    end_after("blend", 7)  # of 2 x 4
    with pytest.raises(PulledPlug):
        command(*options)
    end_after("", None)
    shutil.copytree(folder, tmp_path / "whole")
    assert command(*options, f"hydra.run.dir={tmp_path / 'whole'}").returncode == 0
    (path,) = (folder / "store").glob(f"*/clip-*.{suffix}")
    damage(path, how)
    assert command(*options).returncode == 0
    differ = [name for name in ("video.mp4", "latents.safetensors") if not is_same(name, folder, tmp_path / "whole")]
    assert not differ


def is_same(name: str, *folders: Path) -> bool:
    """Whether a file has the same bytes in two folders."""
    first, second = ((folder / name).read_bytes() for folder in folders)
    return first == second


def test_what_the_planner_chose_is_taken_from_the_first_run(command, folder, end_after, monkeypatch):
    """Whatever GPUs the second one has."""
    options = ("tiles.batch=null", "tiles.overlap=0.5")
    end_after("predict", 8)
    with pytest.raises(PulledPlug):
        command(*options)
    end_after("", None)
    (note,) = (folder / "store").glob("choice-*.json")
    assert json.loads(note.read_text()) == {"overlap": 0.5, "batch": 1}
    note.write_text(json.dumps({"overlap": 0.5, "batch": 2}))
    done = command(*options, "cluster.gpu_memory_gb=80")
    assert done.returncode == 0 and "tiles.batch=2, as chosen when the run began" in done.stdout
    assert run_json(folder)["grid"]["batch"] == 2


def test_other_numerics_are_told_and_what_they_made_is_not_taken(command, folder, end_after, reference, monkeypatch):
    def older(config, device):
        return numerics(config, device) | {"torch": "2.12.0"}

    monkeypatch.setattr(inprocess_executor, "numerics", older)
    end_after("predict", 17)
    with pytest.raises(PulledPlug):
        command()
    end_after("", None)
    monkeypatch.setattr(inprocess_executor, "numerics", numerics)
    done = command()
    assert done.returncode == 0 and "what is stored was made with torch 2.12.0, now" in done.stdout, done.stdout
    assert forwards_of(folder) == FORWARDS and run_json(folder)["latents_sha256"] == reference("euler")


def test_store_that_cannot_be_written_is_told_once_and_costs_nothing_else(command, folder, reference, monkeypatch):
    def full(*_) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Store, "put", full)
    done = command()
    assert done.returncode == 0 and done.stdout.count("nothing more is stored") == 1, done.stdout + done.stderr
    assert "No space left on device" in done.stdout
    assert run_json(folder)["latents_sha256"] == reference("euler")


def test_sweep_that_ended_early_goes_on(command, tmp_path, end_after):
    """Points that are done stay; what points share is in one store, which goes with the last of them."""
    sweep = tmp_path / "sweep"
    options = ("fusion.prior_strength=0,2", "seed=0,1", f"hydra.sweep.dir={sweep}")
    assert command(*options[:2], f"hydra.sweep.dir={tmp_path / 'whole'}", flags=("-m",)).returncode == 0
    end_after("predict", 40)
    with pytest.raises(PulledPlug):
        command(*options, flags=("-m",))
    assert stored_in(sweep, "canvas")
    end_after("", None)
    done = command(*options, flags=("-m",))
    assert done.returncode == 0 and "stored " in done.stdout, done.stderr
    for point in ("0", "1", "2", "3"):
        found = [run_json(folder / point)["latents_sha256"] for folder in (sweep, tmp_path / "whole")]
        assert found[0] == found[1]
    assert not (sweep / "store").exists()


def test_checkpoints_are_as_many_as_their_share_of_the_time_allows(tmp_path, monkeypatch):
    """Of the video; the thumbnail's canvas is small, and stored at every step."""
    job = make_job(None, "model=synthetic", "tiles.window=[32,32]")
    graph = run_graph([job.plan], [job.keys], job.config.dispatch.mode, checkpoints=True)
    graph.num_together, clock = 1, [0.0]
    monkeypatch.setattr(keeper, "SHARE", 0.01)
    monkeypatch.setattr(keeper.time, "monotonic", lambda: clock[0])
    told = []
    kept = Keeper(Store(tmp_path), [job], told.append)
    kept.use([{"torch": "2"}])
    kept.watch(graph)
    kept._cost_s = 0.2  # of the last one
    found = []
    for task in [task for task in graph.nodes if task.kind == "checkpoint"]:
        clock[0] += 12.0  # per step
        found.append((task.level, task.step, kept.wants(task)))
    kept.close()
    assert [wanted for level, _, wanted in found if level == 0] == [True] * job.plan.levels[0].num_steps
    steps = [(step, wanted) for level, step, wanted in found if level == 1]
    assert steps == [(0, True), (1, False), (2, True)] and not told  # 20 s apart at least
    assert not Keeper(None, [job], told.append).keeps


def test_preview_that_ended_while_it_was_decoded_is_made_of_the_step_before(command, folder, end_after, reference):
    end_after("decode", 1)
    with pytest.raises(PulledPlug):
        command("sampler.stop_after=2")
    end_after("", None)
    done = command("sampler.stop_after=2")
    assert done.returncode == 0 and "stored    step 1 of 3" in done.stdout and forwards_of(folder) == 6, done.stderr
    again = command("sampler.stop_after=2")
    assert "already" in again.stdout and again.returncode == 0
    assert command().returncode == 0 and run_json(folder)["latents_sha256"] == reference("euler")


def test_sweep_over_where_to_stop(command, tmp_path, reference):
    """The whole run among them, whose windows meet in another way."""
    sweep = tmp_path / "sweep"
    done = command("sampler.stop_after=1,2,null", "dispatch.mode=allreduce", f"hydra.sweep.dir={sweep}", flags=("-m",))
    assert done.returncode == 0, done.stderr
    assert [run_json(sweep / point)["status"] for point in "012"] == ["paused", "paused", "done"]
    assert run_json(sweep / "2")["latents_sha256"] == reference("euler")


def test_run_that_ends_again_after_a_damaged_entry_has_stored_what_it_did(command, folder, end_after):
    end_after("predict", 20)
    with pytest.raises(PulledPlug):
        command()
    for path in (folder / "store").glob("*/canvas-*"):
        path.write_bytes(b"torn")
    end_after("predict", 20)
    with pytest.raises(PulledPlug):
        command()
    end_after("", None)
    assert "stored    step 2 of 3: 6 of 21 forwards left" in command("plan_only=true").stdout


def test_clip_that_two_runs_keep_at_once_is_torn_by_neither(tmp_path):
    """Each has looked for one before the other has begun its own."""
    plan = make_job(None, "model=synthetic", "model.vae_tile=32").plan
    tiles = list(flat(plan.levels[1].decode_tiles))
    first, second = clip.Clip(plan, 1), clip.Clip(plan, 1)
    blocks = {}
    for i, core in enumerate(tile_cores(plan.levels[1].decode_tiles)):
        pixels = core.scaled(plan.spec.spatial_factor)
        blocks[i] = np.full((plan.num_frames, pixels.height, pixels.width, 3), i + 1, np.uint8)
    for made in (first, second):
        made.keep_at(tmp_path / "clip")
    for made in (first, second):
        made.take(0, blocks[0])
    for i in range(1, len(tiles)):
        first.take(i, blocks[i])
    assert first.is_complete and not second.is_complete and (first.frames > 0).all()
    third = clip.Clip(plan, 1)
    third.keep_at(tmp_path / "clip")
    assert third.decoded == {0}, "tiles of a file that is not there any more"
