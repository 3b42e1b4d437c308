"""`metrics=true`: the figures of a run, the decoded prior they need, and the DINOv3 encoder."""

import json

import numpy as np
import pytest
import torch
from conftest import make_picture
from make_jobs import denoise_prior, make_job, results
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import DINOv3ViTConfig, DINOv3ViTModel

from fresco_dist import models
from fresco_dist.config import InputError
from fresco_dist.jobs.job import Clip
from fresco_dist.media.metrics import prior_similarity
from fresco_dist.models.dino import IMAGENET_MEAN, IMAGENET_STD, DinoEncoder, check_dino

PLAIN = {"sharpness", "temporal_difference", "seam_energy", "prior_distance", "motion_similarity"}


@pytest.fixture(scope="module")
def dino_path(tmp_path_factory):
    """A small random DINOv3 encoder."""
    path = tmp_path_factory.mktemp("dino")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    DINOv3ViTModel(DINOv3ViTConfig(**sizes)).save_pretrained(path)
    return path


def _metrics(folder) -> dict[str, float]:
    run = json.loads((folder / "run.json").read_text())
    assert run["status"] == "done" and run["timings_s"]["metrics"] > 0
    return run["metrics"]


def test_run_with_metrics_writes_them_all_and_changes_no_bit(command, folder, dino_path):
    digests = {}
    for fusion in ("fresco", "multidiffusion"):  # the latter has no use for the prior but to be compared with it
        assert command(f"fusion={fusion}").returncode == 0
        run = json.loads((folder / "run.json").read_text())
        assert "metrics" not in run
        digests[fusion] = run["latents_sha256"]
        encoder = {"prior_similarity": f"dino_path={dino_path}"} if fusion == "fresco" else {}
        done = command(f"fusion={fusion}", "metrics=true", *encoder.values())
        assert (done.returncode, done.stderr) == (0, "")
        figures = _metrics(folder)
        assert figures.keys() == PLAIN | encoder.keys()
        assert all(np.isfinite(value) for value in figures.values()) and -1 <= figures.get("prior_similarity", 0) <= 1
        assert json.loads((folder / "run.json").read_text())["latents_sha256"] == digests[fusion]
    assert len(set(digests.values())) == 2


def test_run_with_metrics_splits_the_prior_distance_by_the_activity_map(command, folder, tmp_path):
    half = np.zeros((48, 96), dtype=np.uint8)
    half[:, :48] = 255
    Image.fromarray(half).save(tmp_path / "half.png")
    assert command("metrics=true", "fusion=regional", f"fusion.activity_map={tmp_path / 'half.png'}").returncode == 0
    figures = _metrics(folder)
    assert figures.keys() == PLAIN | {"prior_distance_active", "prior_distance_background"}
    halves = (figures["prior_distance_active"] + figures["prior_distance_background"]) / 2
    assert figures["prior_distance"] == pytest.approx(halves, rel=1e-6)  # the two regions are of equal size


def test_decoded_prior_is_what_the_tiled_decoder_makes_of_the_prior(model_path):
    """At a native size of four VAE tiles; diffusers' own tiled decoding is the reference."""
    picture = make_picture(176, 144)
    job = make_job(
        model_path, "metrics=true", "prior.area=25344", "sampler.num_steps=1", "video.num_frames=1", image=picture
    )
    tiles, clip = job.plan.levels[0].decode_tiles, Clip(job.plan, 0)
    assert len(tiles) == 2 and len(tiles[0]) == 2
    for task, (*_, block) in results(job, "blend", level=0).items():
        clip.take(task.index, block)
    assert clip.is_complete
    frames, latents_CTHW = torch.tensor(clip.frames), denoise_prior(job)
    tiled = models.load(job.config.model, torch.device("cpu")).vae
    tiled.vae.enable_tiling(128, 128, 96, 96)
    with torch.inference_mode():
        raw = (latents_CTHW * tiled._std + tiled._mean)[None]
        expected = tiled.vae.decode(raw).sample[0].clamp(-1, 1).add(1).mul(127.5).round().byte()
    assert frames.dtype == torch.uint8 and frames.shape == (1, 144, 176, 3)
    assert (frames.int() - expected.permute(1, 2, 3, 0).int()).abs().max() <= 1  # halves may round either way


def test_prior_similarity_is_one_for_equal_clips_and_less_for_others():
    def encode(frame):
        return np.array([frame[..., 0].mean(), frame[..., 1].mean()])

    frames = np.zeros((2, 8, 8, 3), dtype=np.uint8)
    frames[..., 0] = 200
    assert prior_similarity(frames, frames[:, ::2, ::2], encode) == pytest.approx(1)
    turned = frames[..., [1, 0, 2]]
    assert prior_similarity(frames, turned, encode) == pytest.approx(0)
    assert prior_similarity(frames, np.stack([frames[0], turned[1]]), encode) == pytest.approx(0.5)


def test_dino_encodes_a_frame_at_its_own_size_to_its_class_token(dino_path):
    frame = np.asarray(make_picture(50, 37))
    model = DINOv3ViTModel.from_pretrained(dino_path).eval()
    pixels = (torch.tensor(frame) / 255 - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    with torch.no_grad():
        expected = model(pixels.permute(2, 0, 1)[None]).last_hidden_state[0, 0]
    np.testing.assert_allclose(DinoEncoder(dino_path)(frame), expected, atol=1e-5)
    (dino_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    assert np.abs(DinoEncoder(dino_path)(frame) - expected.numpy()).max() > 1e-3
    (dino_path / "preprocessor_config.json").unlink()


def test_dino_path_that_holds_no_encoder_is_bad_input(command, folder, tmp_path, model_path):
    for path, words in (
        (tmp_path / "missing", "must be a directory with config.json (model_type dinov3_vit)"),
        (model_path / "vae", "must be a directory with config.json (model_type dinov3_vit)"),
    ):
        done = command("metrics=true", f"dino_path={path}")
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: dino_path ") and words in line and str(path) in line
        assert not (folder / "run.json").exists()
    (line,) = command(f"dino_path={tmp_path}").stderr.splitlines()
    assert line.startswith("error: dino_path must be null without metrics=true")


def test_dino_variant_is_loaded_and_quantised_weights_are_bad_input(dino_path, tmp_path):
    frame = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    model = DINOv3ViTModel.from_pretrained(dino_path)
    model.save_pretrained(tmp_path, variant="fp16")
    assert np.array_equal(DinoEncoder(tmp_path)(frame), DinoEncoder(dino_path)(frame))
    (file,) = tmp_path.glob("*.safetensors")
    save_file(load_file(file) | {"layer.0.mlp.up_proj.weight_scale": torch.ones(())}, file)
    with pytest.raises(InputError, match="dino_path: .* has .*weight_scale: quantised weights are not read here"):
        check_dino(tmp_path)


def test_dino_weights_that_lack_a_tensor_are_bad_input(tmp_path):
    small = DINOv3ViTConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1)
    DINOv3ViTModel(small).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    with pytest.raises(InputError, match="dino_path: .* lacks tensors"):
        DinoEncoder(tmp_path)
