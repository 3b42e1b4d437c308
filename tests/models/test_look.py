"""Looks: the linear map of latents to colours, on VAEs of every kind."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import make_picture
from make_jobs import make_config
from PIL import Image
from published_models import make_published

from fresco_dist import models
from fresco_dist.jobs.inputs import picture_path
from fresco_dist.media.pictures import read_image
from fresco_dist.models.look import NUM_FRAMES, Look


def loaded(*overrides: str):
    config = make_config(*overrides)
    return models.load(config.model, torch.device("cpu")), models.read_spec(config.model)


def small(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX), dtype=float)


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(np.ravel(one), np.ravel(other))[0, 1])


def picture_like(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    return np.asarray(make_picture(*size, seed=seed))


class ColoursAndMore:
    """A VAE whose latents are the mean colours of cells, mixed, in more channels than a picture can tell apart."""

    def __init__(self, channels: int = 48) -> None:
        self.mix_C3 = torch.randn(channels, 3, generator=torch.Generator().manual_seed(0))

    def encode_clip(self, clip_FHW3: torch.Tensor) -> torch.Tensor:
        frames, height, width, _ = clip_FHW3.shape
        cells = clip_FHW3.float().view(frames, height // 8, 8, width // 8, 8, 3).mean((2, 4)) / 127.5 - 1.0
        return torch.einsum("cr,fhwr->cfhw", self.mix_C3, cells)

    def normalise(self, raw_CTHW: torch.Tensor) -> torch.Tensor:
        return raw_CTHW


def test_look_gives_the_colours_back_where_latents_are_a_mix_of_them():
    vae = ColoursAndMore()
    look = Look(vae, picture_like((160, 96)), 9, 8)
    other = picture_like((64, 40), seed=1)
    (seen,) = look(vae.encode_clip(torch.tensor(other)[None]))
    assert seen.shape == (5, 8, 3) and seen.dtype == np.uint8
    assert np.abs(seen - small(other, (8, 5))).max() < 12  # the ridge, and how the two resize


def test_look_at_a_picture_of_one_colour_is_that_colour():
    vae = ColoursAndMore()
    plain = np.full((80, 160, 3), (200, 120, 30), np.uint8)
    (seen,) = Look(vae, plain, 5, 8)(vae.encode_clip(torch.tensor(plain)[None]))
    assert np.abs(seen.astype(int) - plain[0, 0]).max() <= 1


@pytest.mark.parametrize(("num_frames", "encoded"), [(1, 1), (3, 3), (81, NUM_FRAMES)])
def test_look_is_fitted_on_no_longer_a_clip_than_the_runs(num_frames, encoded):
    lengths, vae = [], ColoursAndMore()
    encode = vae.encode_clip
    vae.encode_clip = lambda clip: lengths.append(len(clip)) or encode(clip)
    Look(vae, picture_like((64, 64)), num_frames, 8)
    assert lengths == [encoded]


def test_look_through_the_embedded_model_is_close_to_the_decoders_pixels():
    """The map of another one of its channels is not."""
    backbone, spec = loaded()
    picture = read_image(picture_path(None)).resize((384, 240))
    clip = torch.tensor(np.stack([np.asarray(picture)[80:144, 130 + 4 * i : 226 + 4 * i] for i in range(5)]))
    with torch.inference_mode():
        look = Look(backbone, np.asarray(picture), 5, spec.spatial_factor)
        z_CTHW = backbone.normalise(backbone.encode_clip(clip))
        decoded = backbone.vae.to_pixels(backbone.vae.decode_tile(z_CTHW)).numpy()
        seen, wrong = look(z_CTHW), look(z_CTHW.roll(1, 0))
    size = seen.shape[2:0:-1]
    for latent_frame in (0, 2):
        shown = small(decoded[latent_frame * spec.temporal_factor], size)
        assert correlation(seen[latent_frame], shown) > 0.95
        assert correlation(wrong[latent_frame], shown) < 0.6
        assert abs(seen[latent_frame].mean() - shown.mean()) < 16


@pytest.mark.parametrize("kind", ["wan", "wan2_2_ti2v_5b", "stable_diffusion"])
def test_look_takes_of_any_vaes_latents_what_a_linear_map_can(kind, model_path, sd_path, tmp_path):
    """Untrained ones tell little of the picture; NumPy's least squares finds hardly more of it."""
    overrides = {
        "wan": lambda: [f"model.path={model_path}"],
        "wan2_2_ti2v_5b": lambda: [f"model.path={make_published(kind, tmp_path / 'model')}"],
        "stable_diffusion": lambda: [
            "model=stable_diffusion", f"model.path={sd_path}", "fusion=multidiffusion", "video.num_frames=1",
        ],
    }[kind]()  # fmt: skip
    backbone, spec = loaded(*overrides)
    num_frames = 1 if kind == "stable_diffusion" else 5
    picture = picture_like((20 * spec.spatial_factor, 20 * spec.spatial_factor))
    with torch.inference_mode():
        look = Look(backbone, picture, num_frames, spec.spatial_factor)
        z_CTHW = backbone.normalise(backbone.encode_clip(torch.tensor(picture).expand(num_frames, -1, -1, -1)))
    shown = np.broadcast_to(small(picture, (20, 20)), (z_CTHW.shape[1], 20, 20, 3)).reshape(-1, 3)
    A = np.c_[z_CTHW.flatten(1).T.double().numpy(), np.ones(len(shown))]
    best = ((A @ np.linalg.lstsq(A, shown)[0] - shown) ** 2).mean()
    ours = ((look(z_CTHW).reshape(-1, 3) - shown) ** 2).mean()
    assert ours < best + 0.1 * (shown.var(0).mean() - best)


def test_look_without_anything_to_tell_is_the_mean_colour():
    """As through the synthetic model, all whose latents are zero."""
    vae = SimpleNamespace(encode_clip=lambda clip: torch.zeros(4, 1, 20, 20), normalise=lambda raw: raw)
    picture = picture_like((160, 160))
    seen = Look(vae, picture, 5, 8)(torch.randn(4, 1, 3, 3))
    assert np.ptp(seen, axis=(0, 1, 2)).max() == 0 and np.abs(seen.mean((0, 1, 2)) - picture.mean((0, 1))).max() < 2
