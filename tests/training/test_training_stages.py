"""The training commands: two steps, resume, and a pipeline folder the stock class loads."""

import json

import pytest
import torch
from diffusers import WanImageToVideoPipeline
from safetensors import safe_open
from safetensors.torch import save_file

from fresco_dist.training import latents, transformer, vae
from fresco_dist.training.build import build_pipeline, build_tokenizer, build_transformer, build_vae
from fresco_dist.training.data import sample_clip, to_tensor
from fresco_dist.training.loop import learning_rate
from fresco_dist.training.muon import orthogonalised


def reported_steps(run):
    return [json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines()]


def test_learning_rate_warms_up_and_decays():
    rates = [learning_rate(step, peak=1.0, num_steps=100, warmup=10) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == pytest.approx(1.0)
    assert rates[10:] == sorted(rates[10:], reverse=True) and rates[-1] < 0.03


@pytest.mark.parametrize("shape", [(8, 30), (30, 8), (16, 16)])
def test_orthogonalised_singular_values_are_near_one(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalised(matrix))
    assert values.max() < 1.3 and values.median() > 0.6


def test_resized_pair_moves_video_and_latents_alike():
    # A latent that is the mean colour of its cell: stretching it must agree with stretching the (smooth) video.
    ramp = torch.linspace(-1, 1, 64)
    video = (ramp[:, None] * 0.5 + ramp * 0.3).expand(1, 3, 2, 64, 64).contiguous()
    cells = torch.nn.functional.avg_pool3d(video, (1, 4, 4))
    small, stretched = vae.resized_pair(cells, video, 2, 3, 5)
    inner = (slice(None), slice(None), slice(None), slice(1, -1), slice(1, -1))
    assert small.shape == cells.shape and stretched.shape == video.shape
    assert torch.allclose(torch.nn.functional.avg_pool3d(stretched, (1, 4, 4))[inner], small[inner], atol=0.01)


def test_condition_matches_the_stock_pipeline():
    pipe = build_pipeline()
    clip = sample_clip(1, height=32, width=48, num_frames=5)
    video = to_tensor([clip])
    _, condition = latents.encode_clips(pipe.vae, [clip])
    with torch.no_grad():
        _, stock = pipe.prepare_latents(video[:, :, 0], 1, 16, 32, 48, 5, torch.float32, torch.device("cpu"))
    assert torch.allclose(transformer.with_mask(condition), stock, atol=1e-5)


def test_padded_text_equals_stock_padding():
    torch.manual_seed(0)
    denoiser = transformer.Denoiser().eval()
    torch.nn.init.normal_(denoiser.transformer.proj_out.weight, std=0.1)
    tokens, counts = torch.tensor([[4, 5, 6, 1], [7, 1, 0, 0]]), torch.tensor([4.0, 2.0])
    x, condition = torch.randn(2, 16, 2, 4, 4), torch.randn(2, 16, 2, 4, 4)
    sigma = torch.tensor([0.3, 0.8])
    with torch.no_grad():
        ours = denoiser(x, sigma, condition, tokens, counts, 226)
        real = torch.arange(226) < counts[:, None]
        padded = torch.nn.functional.pad(tokens, (0, 222))
        text = denoiser.text_encoder(padded, real.long()).last_hidden_state * real[..., None]
        stock = build_transformer().eval()
        stock.load_state_dict(denoiser.transformer.state_dict())
        theirs = stock(torch.cat([x, transformer.with_mask(condition)], 1), sigma * 1000, text, return_dict=False)[0]
    assert ours.std() > 0.01
    assert torch.allclose(ours, theirs, atol=1e-4)


def test_named_direction_reaches_the_picture_before_training():
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    denoiser = transformer.Denoiser().eval()
    torch.nn.init.normal_(denoiser.transformer.proj_out.weight, std=0.1)
    prompts = [f"a fresco. the figures walk to the {side}. the trees sway." for side in ("left", "right")]
    tokens = tokenizer(prompts, return_tensors="pt")
    x, condition = (torch.randn(1, 16, 2, 4, 4).expand(2, -1, -1, -1, -1) for _ in range(2))
    with torch.no_grad():
        left, right = denoiser(
            x, torch.tensor([0.9, 0.9]), condition, tokens.input_ids, tokens.attention_mask.sum(1).float(), 226
        )
    assert (left - right).std() > 0.1 * left.std()


def test_what_reads_the_text_learns_slowly():
    denoiser = transformer.Denoiser()
    *fast, slow = transformer.make_optimizers(denoiser, lr=1.0)
    assert slow.param_groups[0]["share"] == transformer.TEXT_SHARE < 0.1
    chosen = [p for optimizer in (*fast, slow) for p in optimizer.param_groups[0]["params"]]
    assert len(chosen) == len({id(p) for p in chosen}) == len(list(denoiser.parameters()))
    held = {id(p) for p in slow.param_groups[0]["params"]}
    assert id(denoiser.text_encoder.shared.weight) in held
    assert id(denoiser.transformer.blocks[0].attn2.to_out[0].weight) not in held


def test_untrained_autoencoder_treats_the_frames_of_a_still_clip_alike():
    torch.manual_seed(0)
    vae_model = build_vae().eval()
    still = torch.rand(1, 3, 1, 16, 16).expand(-1, -1, 9, -1, -1) * 2 - 1
    with torch.no_grad():
        latents_BCTHW = vae_model.encode(still).latent_dist.mode()
        frames = vae_model.decode(latents_BCTHW).sample
    assert latents_BCTHW.shape[2] == 5 and frames.shape == still.shape
    assert torch.allclose(latents_BCTHW[:, :, 2:], latents_BCTHW[:, :, 1:2], atol=1e-5)
    assert torch.allclose(frames[:, :, 3:], frames[:, :, 1:2], atol=1e-5)


@pytest.mark.slow
def test_stages_run_resume_and_export(tmp_path):
    vae_run, cache, run = tmp_path / "vae", tmp_path / "latents", tmp_path / "transformer"
    common = ["--device", "cpu", "--save-every", "1"]
    first = ["--run", str(vae_run), "--batch", "1", "--eval-clips", "1", "--statistics-clips", "2", *common]
    vae.main([*first, "--steps", "1"])
    vae.main([*first, "--steps", "2", "--processes", "2"])
    assert reported_steps(vae_run) == [1, 1, 2, 2]
    with safe_open(vae_run / "state.safetensors", "pt") as file:
        assert file.metadata()["step"] == "2"

    latents.main(
        ["--vae", str(vae_run / "vae"), "--out", str(cache), "--clips", "2", "--shard-clips", "2", "--device", "cpu"]
    )
    shard = latents.load_cache(cache)[0]
    assert shard["latents"].shape[:3] == (2, 16, 5) and shard["latents"].isfinite().all()

    second = ["--vae", str(vae_run / "vae"), "--cache", str(cache), "--run", str(run), "--batch", "2", *common]
    transformer.main([*second, "--steps", "1", "--num-samples", "0"])
    transformer.main([*second, "--steps", "2", "--num-samples", "1"])
    assert reported_steps(run) == [1, 2]
    assert (run / "samples" / "000002.png").exists()
    assert {path.suffix for path in run.rglob("*") if path.is_file()} <= {".safetensors", ".json", ".jsonl", ".png"}
    pipe = WanImageToVideoPipeline.from_pretrained(run / "pipeline")
    assert pipe.vae.config.latents_std != build_vae().config.latents_std


def test_missing_cache_names_key_and_remedy(tmp_path):
    with pytest.raises(ValueError, match="--cache.*fresco_dist.training.latents"):
        latents.load_cache(tmp_path)


def test_cache_of_another_vocabulary_is_refused(tmp_path):
    """Its token ids would stand for other words."""
    for name, vocabulary in (("0", latents.vocabulary_digest()), ("1", "that of last year")):
        save_file({"latents": torch.zeros(1)}, tmp_path / f"{name}.safetensors", {"vocabulary": vocabulary})
    with pytest.raises(ValueError, match="--cache.*1.safetensors.*vocabulary"):
        latents.load_cache(tmp_path)
