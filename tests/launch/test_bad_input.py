"""Bad input of every kind: one line, exit code 2, nothing half-written."""

import json
import shutil
from pathlib import Path
from unittest import mock
from zlib import crc32

import pytest
from conftest import make_picture, products_of
from PIL import Image
from safetensors.numpy import load_file, save_file

BAD_INPUT = [  # overrides, what the line must say; {tmp} is a folder with the files of `bad_files`
    (["image={tmp}/missing.png"], ["image", "{tmp}/missing.png", "no such file"]),
    (["image={tmp}"], ["image", "Is a directory"]),
    (["image={tmp}/text.png"], ["image", "{tmp}/text.png", "not an image"]),
    (["image={tmp}/truncated.jpg"], ["image", "{tmp}/truncated.jpg", "truncated"]),
    (["image={tmp}/bomb.png"], ["image", "60000 x 60000", "at most"]),
    (["image={tmp}/dot.png"], ["image", "at least 8 px high and wide", "got 3 x 3 px"]),
    (["image="], ["image", "path or null"]),
    (["sed=3"], ["sed: there is no such key", "Did you mean seed?"]),
    (["tiles.overlp=0.3"], ["tiles.overlp", "Did you mean tiles.overlap?"]),
    (["+tiles.overlp=0.3"], ["tiles.overlp", "Did you mean tiles.overlap?"]),
    (["+overlap=0.3"], ["overlap: there is no such key"]),
    (["model=nope"], ["model must be one of", "fresco_tiny", "wan", "got nope"]),
    (["fusion=nope"], ["fusion must be one of", "fresco", "multidiffusion", "regional", "got nope"]),
    (["+cluster=nope"], ["cluster must be one of", "8xh100", "cpu", "got nope"]),
    (["cluster=4x-h100"], ["cluster must be one of", "8xh100", "got 4x-h100"]),
    (["num_steps=2"], ["num_steps: there is no such key", "Did you mean sampler.num_steps or prior.num_steps?"]),
    (["video=prores"], ["video holds keys of its own: ", "video.format"]),
    (["cluster=nope"], ["cluster", "nope"]),
    (
        ["cluster.executor=ray", "+cluster=8xh100"],
        ["cluster.num_workers", "8 workers need 8 GPUs", "0 are there", "gpus_per_worker=0"],
    ),
    (
        ["cluster.executor=ray", "+cluster=2x8xh100"],
        ["cluster.num_nodes must be", "8 GPUs and 32 CPUs", "got 2", "1 with 0 GPUs and 2 CPUs", "cluster.address="],
    ),
    (
        ["cluster.executor=ray", "cluster.num_workers=999"],
        ["cluster.num_workers", "999 workers need", "CPUs", "comes to the same"],
    ),
    (["cluster.num_workers=2"], ["cluster.num_workers must be 1 with cluster.executor=inprocess", "got 2"]),
    (["cluster.executor=slurm"], ["cluster.executor", "slurm", "ray, inprocess"]),
    (["tiles.overlap=1.0"], ["tiles.overlap must be in [0, 1)", "got 1.0"]),
    (["fusion.prior_strength=-1"], ["fusion.prior_strength must be in [0, 1e9]", "got -1"]),
    (["fusion=regional", "fusion.cutoff_active=0.5"], ["fusion.cutoff_active", "0.2", "got 0.5"]),
    (["sampler.sigmas=0.5"], ["sampler.sigmas must be a list, sampler.sigmas=[A,B]", "got 0.5"]),
    (["fusion=dynamic_scaler", "fusion.motion_guidance=0.5"], ["fusion.motion_guidance must be a list, "]),
    (
        ["fusion=demofusion", "fusion.detail_map={tmp}/no.png", "fusion.detail_background=1"],
        ["fusion.detail_map", "no such"],
    ),
    (
        ["fusion=demofusion", "fusion.residual_time=now"],
        ["fusion.residual_time", "now", "timestep, snr, unshifted, step"],
    ),
    (["fusion.method=[a]"], ["fusion.method must be one of", "got [a]"]),
    (["fusion.method=nope"], ["fusion.method must be one of cascade, demofusion,", "got nope"]),
    (["+fusion.size=3"], ["fusion.size", "no such key"]),
    (["fusion.schedule=linear"], ["fusion.schedule", "linear", "constant, cosine"]),
    (["video.num_frames=6"], ["video.num_frames must be 1 plus a multiple of 4", "got 6", "Try 5"]),
    (["seed=abc"], ["seed=abc", "Integer"]),
    (["seed=null"], ["seed=null", "not Optional"]),
    (["tiles.window=[a,b]"], ["tiles.window=[a,b]", "Integer"]),
    (["prompt=water,banners"], ["prompt=water,banners", "with -m", "'prompt=\"water,banners\"'"]),
    (["prompt=choice(a,b)"], ["prompt=choice(a,b)", "with -m", "'prompt=\"choice(a,b)\"'"]),
    (["image={tmp}/ü (1),2=.png"], ["image={tmp}/ü (1),2=.png", "with -m", "quotes"]),
    (["image={tmp}/ü (1)=.png"], ["image", "no such file: {tmp}/ü (1)=.png"]),
    (["promt=水"], ["promt: there is no such key. Did you mean prompt?"]),
    (["seed=水"], ["seed", "水", "Integer"]),
    (["region_mode=水"], ["region_mode", "水", "blend, dominant"]),
    (["seed=1 2"], ["seed", "1 2", "Integer"]),
    (["mural.jpg"], ["mural.jpg", "Did you mean image=mural.jpg?"]),
    (["--prompt", "it flows, slowly"], ["--prompt", "no such option", "'prompt=\"it flows, slowly\"'"]),
    (["--cfg"], ["--cfg must be followed by a value"]),
    (["fusion=regional"], ["fusion.activity_map must be", "got null"]),
    (["fusion=regional", "fusion.activity_map={tmp}/dot.png"], ["fusion.activity_map", "96 x 48 px", "got 3 x 3 px"]),
    (["fusion=regional", "fusion.activity_map={tmp}/nope.png"], ["fusion.activity_map", "no such file"]),
    (["fusion.activity_map={tmp}/dot.png"], ["fusion.activity_map", "fusion=regional"]),
    (["regions=[{prompt: walk, mask: {tmp}/nope.png}]"], ["regions[0].mask", "no such file", "{tmp}/nope.png"]),
    (["regions=[{prompt: walk, mask: {tmp}/text.png}]"], ["regions[0].mask", "{tmp}/text.png", "not an image"]),
    (["regions=[{prompt: walk, mask: {tmp}/dot.png}]"], ["regions[0].mask", "96 x 48 px", "got 3 x 3 px"]),
    (["regions=[{prompt: walk, mask: {tmp}/dark.png}]"], ["regions[0].mask", "{tmp}/dark.png", "dark everywhere"]),
    (["regions=[{prompt: walk, box: [0, 0, 0.005, 0.005]}]"], ["regions", "canvas", "4 px", '"walk"']),
    (["regions=[{prompt: walk, box: [0, 0, 1, 1], colour: red}]"], ["regions[0].colour: there is no such key"]),
    (["regions=[{prompt: walk, box: [0, 0, a, 1]}]"], ["regions[0].box[2]", "Float"]),
    (["regions=[walk]"], ["regions must be a list of {prompt: TEXT", "got ['walk']"]),
    (["regions={prompt: walk}"], ["regions must be a list", "got {prompt: walk}"]),
    (["regions=null"], ["regions must be a list of {prompt: TEXT", "got None"]),
    (["regions={tmp}/nope.yaml"], ["regions", "{tmp}/nope.yaml cannot be read", "No such file"]),
    (["regions={tmp}"], ["regions", "{tmp} cannot be read", "Is a directory"]),
    (["regions={tmp}/whole.jpg"], ["regions", "{tmp}/whole.jpg is not YAML"]),
    (["regions={tmp}/broken.yaml"], ["regions", "{tmp}/broken.yaml is not YAML"]),
    (["regions={tmp}/text.png"], ["regions must be a list of {prompt: TEXT", "got {tmp}/text.png"]),
    (["regions={tmp}/regions.yaml"], ["regions[1].mask", "no such file", "{tmp}/below/nope.png"]),
    (["region_mode=mix"], ["region_mode", "mix", "blend, dominant"]),
    (["model.backbone=nope"], ["model.backbone must be one of", "synthetic", "wan", "got nope"]),
    (["model.vae_tile=100"], ["model.vae_tile must be a multiple of 16 pixels", "got 100", "Try 96"]),
    (["model.path={tmp}/missing"], ["model.path must be a directory", "{tmp}/missing"]),
    (["model.path={tmp}/text.png"], ["model.path must be a directory", "{tmp}/text.png"]),
    (["hydra.run.dir={tmp}/text.png/out"], ["hydra.run.dir", "can be written", "{tmp}/text.png/out"]),
    (["hydra.run.dir=/proc/nope"], ["hydra.run.dir", "can be written", "/proc/nope"]),
    (["hydra.run.dir=/proc"], ["hydra.run.dir", "can be written", "/proc"]),
]


@pytest.fixture
def bad_files(tmp_path) -> Path:
    """A folder with files that are no good as pictures."""
    path = tmp_path / "bad"
    path.mkdir()
    (path / "text.png").write_text("not a picture")
    make_picture(64, 64).save(path / "whole.jpg")
    Image.new("L", (96, 48)).save(path / "dark.png")
    (path / "broken.yaml").write_text("- {prompt: [walk")
    (path / "regions.yaml").write_text("[{prompt: a, box: [0, 0, 1, 1]}, {prompt: b, mask: below/nope.png}]")
    (path / "truncated.jpg").write_bytes((path / "whole.jpg").read_bytes()[:-400])
    make_picture(3, 3).save(path / "dot.png")
    png = (path / "dot.png").read_bytes()
    side = (60000).to_bytes(4, "big")
    header = png[12:16] + side + side + png[24:29]
    (path / "bomb.png").write_bytes(png[:12] + header + crc32(header).to_bytes(4, "big") + png[33:])
    return path


def _assert_refused(done, folder: Path, words: list[str]) -> None:
    """Exit code 2, one line that says `words`, and nothing in the run folder that looks like a result."""
    assert done.returncode == 2, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    assert [word for word in words if word not in lines[0]] == [], lines[0]
    assert products_of(folder) == set()


@pytest.fixture
def no_workers(monkeypatch):
    """Bad input is refused before a model is loaded or Ray is started: either would be a failure of another kind."""
    for name in ("fresco_dist.jobs.pool.start_workers", "fresco_dist.runtime.ray_cluster.start_ray"):
        monkeypatch.setattr(name, mock.Mock(side_effect=AssertionError(f"{name} was called")))
    monkeypatch.setattr("fresco_dist.runtime.ray_cluster.resources", lambda _: [{"CPU": 2.0, "GPU": 0.0}])


@pytest.mark.parametrize("overrides, words", BAD_INPUT, ids=[" ".join(case[0]) for case in BAD_INPUT])
def test_command_bad_input_is_refused_in_one_line(command, folder, bad_files, no_workers, overrides, words):
    done = command(*(override.replace("{tmp}", str(bad_files)) for override in overrides))
    _assert_refused(done, folder, [word.replace("{tmp}", str(bad_files)) for word in words])


def test_command_model_wan_needs_a_path(command, folder, no_workers):
    _assert_refused(command("model=wan", tiny=False), folder, ["model.path must be given"])


WEIGHTS = "diffusion_pytorch_model.safetensors"
DAMAGE = {
    "cut in half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "a web page": lambda path: path.write_text("<html>404</html>" * 10),
    "missing": lambda path: path.unlink(),
}
MODEL_FILES = [
    "model_index.json",
    "transformer/config.json",
    f"transformer/{WEIGHTS}",
    "vae/config.json",
    f"vae/{WEIGHTS}",
    "scheduler/scheduler_config.json",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
]


@pytest.mark.parametrize("name", MODEL_FILES)
def test_command_damaged_model_file_is_refused_by_name(command, folder, model_path, tmp_path, no_workers, name):
    for damage in DAMAGE if name.startswith("transformer") else ("cut in half", "missing"):
        model = tmp_path / damage.replace(" ", "_")
        shutil.copytree(model_path, model)
        DAMAGE[damage](model / name)
        named = name if damage != "missing" or name.endswith("config.json") else Path(name).parent
        _assert_refused(command(f"model.path={model}"), folder, ["model.path", str(model / named)])


@pytest.mark.parametrize("name", ["transformer/config.json", "vae/config.json", "tokenizer/tokenizer_config.json"])
def test_command_model_json_of_another_shape_is_refused(command, folder, model_path, tmp_path, no_workers, name):
    shutil.copytree(model_path, tmp_path / "model")
    (tmp_path / "model" / name).write_text("[]")
    done = command(f"model.path={tmp_path / 'model'}")
    _assert_refused(done, folder, ["model.path", name, "lacks a JSON object"])


@pytest.mark.parametrize("component", ["transformer", "vae", "scheduler", "tokenizer", "text_encoder"])
def test_command_model_without_a_folder_is_refused(command, folder, model_path, tmp_path, no_workers, component):
    shutil.copytree(model_path, tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / component)
    _assert_refused(command(f"model.path={tmp_path / 'model'}"), folder, ["model.path", component])


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["seed=abc"], ["seed=abc", "Integer"]),
        (["+cluster=8xh100"], ["cluster.num_workers", "8 workers need 8 GPUs", "0 are there", "gpus_per_worker=0"]),
    ],
)
def test_command_bad_input_in_a_process_of_its_own(launch, folder, picture_path, monkeypatch, overrides, words):
    """As above, with everything that only a real process shows: warnings of libraries, the exit code."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    _assert_refused(launch(f"image={picture_path}", *overrides), folder, words)


@pytest.mark.parametrize("component", ["text_encoder", "transformer", "vae"])
def test_command_model_that_lacks_a_tensor_is_refused_by_name(command, folder, model_path, tmp_path, component):
    """The file is whole and its header is right: libraries would fill in random weights, or fail with a traceback."""
    path = shutil.copytree(model_path, tmp_path / "model")
    (weights,) = (path / component).glob("*.safetensors")
    tensors = load_file(weights)
    removed = sorted(name for name in tensors if name.endswith("weight"))[0]
    del tensors[removed]
    save_file(tensors, weights, metadata={"format": "pt"})
    done = command(f"model.path={path}")
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: model.path: {path / component}") and "tensors" in line
    assert products_of(folder) <= {"run.json", "trace.json", "timeline.png"}


@pytest.mark.parametrize(
    "file, change, reason",
    [
        ("scheduler/scheduler_config.json", {"stochastic_sampling": True}, "noise drawn at every step"),
        ("scheduler/scheduler_config.json", {"use_dynamic_shifting": True}, "shift that depends on the size"),
        ("scheduler/scheduler_config.json", {"_class_name": "DDIMScheduler"}, "noise scheduler DDIMScheduler"),
    ],
)
def test_command_model_of_a_kind_that_is_not_supported_is_refused_with_the_reason(
    command, folder, model_path, tmp_path, no_workers, file, change, reason
):
    path = Path(shutil.copytree(model_path, tmp_path / "model"))
    (path / file).write_text(json.dumps(json.loads((path / file).read_text()) | change))
    _assert_refused(command(f"model.path={path}"), folder, ["model.path", reason, "not supported yet"])


@pytest.mark.parametrize(
    "file, change, words",
    [  # configuration files that promise what is not there
        ("model_index.json", {"boundary_ratio": 0.9}, ["transformer_2", "missing"]),
        ("model_index.json", {"_class_name": "WanPipeline"}, ["holds a WanPipeline", "WanImageToVideoPipeline"]),
        ("transformer/config.json", {"image_dim": 1280}, ["image_encoder", "missing"]),
    ],
)
def test_command_model_that_lacks_a_part_it_names_is_refused(
    command, folder, model_path, tmp_path, no_workers, file, change, words
):
    path = Path(shutil.copytree(model_path, tmp_path / "model"))
    (path / file).write_text(json.dumps(json.loads((path / file).read_text()) | change))
    _assert_refused(command(f"model.path={path}"), folder, ["model.path", *words])
