"""Against the stock diffusers pipeline and VAE on the same weights: what nobody here wrote."""

import pytest
import torch
import torch.nn.functional as F
from conftest import make_picture
from diffusers import AutoencoderKLWan
from make_jobs import FRAMES, HEIGHT, PROMPTS, STEPS, WIDTH, denoise, denoise_prior, graph_of, make_job, stock_latents
from PIL import Image

from fresco_dist import models
from fresco_dist.method.grid import Window, vae_tiles
from fresco_dist.method.level import PRIOR_STREAM
from fresco_dist.method.noise import gaussian_noise
from fresco_dist.models.conditioning import Conditioning
from fresco_dist.models.tiling import blend_tile, blend_tiles, join_tiles
from fresco_dist.models.wan.vae import TiledVae
from fresco_dist.schedule.graph import Task


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
@pytest.mark.parametrize("scheduler", ["euler", "unipc"])
def test_one_window_without_prior_is_the_stock_pipeline(request, scheduler, guidance_scale):
    path = request.getfixturevalue({"euler": "model_path", "unipc": "unipc_model_path"}[scheduler])
    job = make_job(path, "fusion=multidiffusion", "tiles.window=[480,640]", f"sampler.guidance_scale={guidance_scale}")
    assert len(job.plan.canvas.steps[0].grid.windows) == 1
    ours = denoise(job)
    noise = gaussian_noise(tuple(ours.shape), seed=0)
    theirs = stock_latents(path, noise, make_picture(WIDTH, HEIGHT), guidance_scale=guidance_scale)
    assert float(theirs.std()) > 0.3
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_the_prior_is_the_stock_pipeline_at_native_size_and_a_strong_one_is_the_result(model_path):
    job = make_job(
        model_path,
        "fusion.prior_strength=1e8",
        "fusion.cutoff=1",
        "fusion.schedule=constant",
        "prior.area=512",
        image=make_picture(64, 32),
    )
    prior, latents = denoise_prior(job), denoise(job)
    assert job.plan.size_px(0) == (32, 16)
    noise = gaussian_noise(tuple(prior.shape), seed=0, stream=PRIOR_STREAM)
    stock = stock_latents(model_path, noise, Image.fromarray(job.pictures[0]), guidance_scale=1.0)
    torch.testing.assert_close(prior, stock, rtol=0, atol=1e-5)
    torch.testing.assert_close(latents, whole_prior(prior, job), rtol=0, atol=1e-4)


def whole_prior(prior: torch.Tensor, job) -> torch.Tensor:
    """The prior resized to the canvas by torch itself."""
    return F.interpolate(prior[None], size=job.plan.canvas.latent_shape[1:], mode="trilinear", align_corners=True)[0]


def test_without_prior_the_result_is_plain_multidiffusion(unipc_model_path):
    """Many windows, guidance 3, a multistep scheduler; the reference loop is written out."""
    job = make_job(unipc_model_path, "fusion=multidiffusion", "tiles.window=[32,32]", "sampler.guidance_scale=3")
    assert len(job.plan.canvas.steps[0].grid.windows) == 6
    backbone = models.load(job.config.model, torch.device("cpu"))
    scheduler = backbone.make_scheduler(STEPS, None)
    with torch.inference_mode():
        prompt, negative = map(backbone.encode_text, PROMPTS)
        condition = backbone.make_condition(backbone.encode_image(torch.tensor(job.pictures[-1]), FRAMES))
        x = gaussian_noise(job.plan.canvas.latent_shape, seed=0)
        ramp_H = torch.tensor([0.05, 0.2875, 0.525, 0.7625] + [1.0] * 4)
        for t in scheduler.timesteps:
            value, count = torch.zeros_like(x), torch.zeros_like(x)
            for top in (0, 4):
                for left in (0, 4, 8):
                    window = Window(top, left, 8, 8)
                    crop = (..., *window.slices)
                    given = [Conditioning(condition.canvas_CTHW[crop])]
                    cond = backbone.predict(x[crop][None], given, t, prompt)[0]
                    uncond = backbone.predict(x[crop][None], given, t, negative)[0]
                    up, down = (ramp_H if top else torch.ones(8)), (torch.ones(8) if top else ramp_H.flip(0))
                    before = ramp_H if left else torch.ones(8)
                    after = torch.ones(8) if left == 8 else ramp_H.flip(0)
                    w = torch.minimum(up, down)[:, None] * torch.minimum(before, after)
                    value[crop] += w * (uncond + 3.0 * (cond - uncond))
                    count[crop] += w
            x = scheduler.step((value / count)[None], t, x[None], return_dict=False)[0][0]
    torch.testing.assert_close(denoise(job), x, rtol=0, atol=2e-5)


@pytest.fixture(params=[None, 2], ids=["plain", "patched"])
def vae(request) -> AutoencoderKLWan:
    torch.manual_seed(0)
    patch = request.param
    return AutoencoderKLWan(
        base_dim=2,
        z_dim=4,
        dim_mult=[1, 2, 2] if patch is None else [1, 1],
        num_res_blocks=1,
        temperal_downsample=[True, True] if patch is None else [True],
        is_residual=patch is not None,
        in_channels=3 if patch is None else 12,
        out_channels=3 if patch is None else 12,
        patch_size=patch,
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[0.5, 0.6, 0.7, 0.8],
        scale_factor_spatial=4,
        scale_factor_temporal=4,
    ).eval()


@pytest.mark.parametrize("tile_px, size", [(256, (60, 70)), (128, (40, 60))], ids=["its own tiles", "smaller tiles"])
def test_spread_decode_is_the_stock_tiled_decode(vae, tile_px, size):
    tiled, stride_px = TiledVae(vae), tile_px * 3 // 4
    latents = torch.randn(4, 2, *size, generator=torch.Generator().manual_seed(0))
    tiles = vae_tiles(size, tile_px // 4, stride_px // 4)
    assert (len(tiles), len(tiles[0])) == ((2, 2) if tile_px == 256 else (2, 3))
    pixels = torch.zeros(_num_frames(vae, 2), 4 * size[0], 4 * size[1], 3, dtype=torch.uint8)
    edges: dict = {}
    with torch.inference_mode():
        decoded = [tiled.decode_tile(latents[(..., *tile.slices)]) for row in tiles for tile in row]
        for i, row in enumerate(tiles):
            for j, tile in enumerate(row):  # as workers do
                above, left = edges.get((i - 1, j), (None, None))[0], edges.get((i, j - 1), (None, None))[1]
                core, *edges[i, j] = blend_tile(tiles, i, j, decoded[i * len(row) + j], above, left)
                block = pixels[:, 4 * tile.top :, 4 * tile.left :][:, :stride_px, :stride_px]
                block.copy_(tiled.to_pixels(core))
        in_one_place = join_tiles(tiles, map(tiled.to_pixels, blend_tiles(tiles, decoded)), dim=1)
        vae.enable_tiling(tile_px, tile_px, stride_px, stride_px)
        raw_latents = latents[None] * tiled._std + tiled._mean
        stock = vae.decode(raw_latents).sample[0]
    theirs = (stock * 0.5 + 0.5).clamp(0, 1).mul(255).round().byte().permute(1, 2, 3, 0)
    assert torch.equal(pixels, theirs) and torch.equal(in_one_place, theirs)


@pytest.mark.parametrize(
    "tile_px, size", [(256, (260, 212)), (128, (100, 200))], ids=["its own tiles", "smaller tiles"]
)
def test_spread_encode_is_the_stock_tiled_encode(vae, tile_px, size):
    tiled, patch = TiledVae(vae), vae.config.patch_size or 1
    size = (size[0] * patch, size[1] * patch)
    video = torch.rand(3, 5, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    tiles = vae_tiles((size[0] // 4, size[1] // 4), tile_px * patch // 4, tile_px * 3 // 4 * patch // 4)
    assert len(tiles) * len(tiles[0]) == (4 if tile_px == 256 else 6)
    with torch.inference_mode():
        encoded = [tiled.encode_tile(video[(..., *tile.scaled(4).slices)]) for row in tiles for tile in row]
        ours = join_tiles(tiles, blend_tiles(tiles, encoded))
        vae.enable_tiling(tile_px, tile_px, tile_px * 3 // 4, tile_px * 3 // 4)
        theirs = vae.encode(video[None]).latent_dist.mode()[0]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def _num_frames(vae: AutoencoderKLWan, num_latent_frames: int) -> int:
    with torch.inference_mode():
        return vae.decode(torch.zeros(1, 4, num_latent_frames, 8, 8)).sample.shape[2]


def test_decoding_graph_blends_after_its_neighbours(model_path):
    job = make_job(model_path, image=make_picture(300, 150))
    nodes, of = graph_of(job).nodes, job.keys.levels[1].clip
    tile, above, left = (Task(kind, index=i, level=1, of=of) for kind, i in (("decode", 5), ("blend", 1), ("blend", 4)))
    inputs = nodes[Task("blend", index=5, level=1, of=of)].inputs
    assert inputs == {"tile": (tile,), "above": (above,), "left": (left,)}
    assert nodes[Task("blend", index=0, level=1, of=of)].sources == (Task("decode", index=0, level=1, of=of),)
