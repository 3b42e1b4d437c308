"""Wan image-to-video models in diffusers format: Wan2.1, Wan2.2 with two experts, Wan2.2 with timesteps per token.

Follows `WanImageToVideoPipeline` call by call: one window as large as the canvas reproduces it in float32. (In bfloat16
the stock Euler scheduler rounds the latents to bfloat16 after every step; here they stay float32. The stock pipeline
guides at no step if `guidance_scale` is 1; here the low-noise expert still has its own scale.) Sizes come from the
model's own configuration. Loads safetensors only, and never code from a model directory.
"""

import time
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import AutoencoderKLWan

from fresco_dist.config import ModelConfig
from fresco_dist.models.attention import choose_attention, set_attention
from fresco_dist.models.backbone import Backbone, pixels_to_floats
from fresco_dist.models.checkpoint import model_path, read_json
from fresco_dist.models.conditioning import Conditioning
from fresco_dist.models.loading import load_component
from fresco_dist.models.places import WAN_VAE
from fresco_dist.models.wan.encoders import MAX_SEQUENCE_LENGTH, ImageEncoder, TextEncoder
from fresco_dist.models.wan.experts import Experts
from fresco_dist.models.wan.spec import EXPERTS, make_scheduler, read_index, read_transformer, stage_of
from fresco_dist.models.wan.vae import TiledVae


def load(model: ModelConfig, device: torch.device, tiles: Sequence[tuple[int, int, int, int]]) -> "WanBackbone":
    """Transformers and VAE on `device`; text and image encoders are loaded only by a worker that encodes."""
    return WanBackbone(model_path(model), model, device, tiles)


class WanBackbone(Backbone):
    """One replica."""

    encoder_names = ("_text_encoder", "_image_encoder")

    vae: TiledVae

    def __init__(
        self, path: Path, model: ModelConfig, device: torch.device, tiles: Sequence[tuple[int, int, int, int]]
    ) -> None:
        self._path, self._device, self._dtype = path, device, getattr(torch, model.dtype.value)
        index = read_index(path)
        self._expand_timesteps = bool(index["expand_timesteps"])
        self._boundary_ratio: float | None = index["boundary_ratio"]
        self._config = SimpleNamespace(**read_transformer(path / EXPERTS[0]))
        self._scheduler_config = read_json(path / "scheduler" / "scheduler_config.json")
        tiles = tiles or [(1, *self._config.patch_size)]
        attention = choose_attention(  # before weights are read: a refusal comes at once
            model.attention,
            device=device,
            dtype=self._dtype,
            heads=(self._config.num_attention_heads, self._config.attention_head_dim),
            lengths=[pair for _, *tile in dict.fromkeys(tiles) for pair in self._attention_lengths(tile)],
        )
        self.attention_backend = attention.value
        self._before_switch: set[float] = set()  # timesteps of last steps with the high-noise expert
        self._experts = Experts(path, 1 if self._boundary_ratio is None else 2, model, device)
        for transformer in self._experts.all:
            set_attention(transformer, attention)
        vae_dtype = getattr(torch, model.vae_dtype.value)
        self.vae = TiledVae(load_component(AutoencoderKLWan, path / "vae", WAN_VAE, torch_dtype=vae_dtype).to(device))
        self.compile_s = self._compile(tiles) if model.compile else 0.0

    @cached_property
    def _text_encoder(self) -> TextEncoder:
        self._experts.make_room()
        return TextEncoder(self._path, self._dtype, self._device)

    @cached_property
    def _image_encoder(self) -> ImageEncoder:
        return ImageEncoder(self._path, self._device)

    def encode_text(self, text: str) -> torch.Tensor:
        """See Backbone."""
        return self._text_encoder.encode(text)

    def embed_picture(self, pictures: Sequence[torch.Tensor]) -> torch.Tensor:
        """See Backbone."""
        return self._image_encoder.embed(pictures)

    def encode_image(
        self, image_HW3: torch.Tensor, num_frames: int, last_HW3: torch.Tensor | None = None
    ) -> torch.Tensor:
        """See Backbone."""
        first_3HW = pixels_to_floats(image_HW3.to(self._device))
        video_3FHW = first_3HW.new_zeros(3, 1 if self._expand_timesteps else num_frames, *first_3HW.shape[1:])
        video_3FHW[:, 0] = first_3HW
        if last_HW3 is not None:
            video_3FHW[:, -1] = pixels_to_floats(last_HW3.to(self._device))
        return self.vae.encode_tile(video_3FHW)

    def encode_clip(self, clip_FHW3: torch.Tensor) -> torch.Tensor:
        """See Backbone."""
        return self.vae.encode_tile(pixels_to_floats(clip_FHW3.to(self._device)))

    def normalise(self, raw_CTHW: torch.Tensor) -> torch.Tensor:
        """See Backbone."""
        return self.vae.normalise(raw_CTHW)

    def make_condition(
        self, raw_CTHW: torch.Tensor, image_embeds: tuple[torch.Tensor, ...] = (), *, has_last: bool = False
    ) -> Conditioning:
        """See Backbone. Image latents, before them mask channels: 1 where a frame is given.

        There is one mask channel per frame of a latent frame; the first latent frame stands for one frame. With
        timesteps per token there are no masks, and only the first latent frame.
        """
        image_CTHW = self.vae.normalise(raw_CTHW)
        if self._expand_timesteps:
            return Conditioning(image_CTHW, image_embeds)
        mask_CTHW = raw_CTHW.new_zeros(self.vae.vae.config.scale_factor_temporal, *raw_CTHW.shape[1:])
        mask_CTHW[:, 0] = 1.0
        if has_last:
            mask_CTHW[-1, -1] = 1.0
        return Conditioning(torch.cat([mask_CTHW, image_CTHW]), image_embeds)

    def make_scheduler(self, num_steps: int, shift: float | None, sigmas: Sequence[float] | None = None) -> Any:
        """See Backbone. Remembers at which timesteps the second expert is wanted soon."""
        scheduler = make_scheduler(self._scheduler_config, num_steps, shift, sigmas, self._device)
        for timestep, following in pairwise(map(float, scheduler.timesteps)):
            if self._stage(timestep) < self._stage(following):
                self._before_switch.add(timestep)
        return scheduler

    def _stage(self, timestep: float) -> int:
        return stage_of(self._scheduler_config, self._boundary_ratio, timestep)

    def predict(
        self,
        x_BCTHW: torch.Tensor,
        conditions: Sequence[Conditioning],
        timestep: torch.Tensor,
        prompt_embeds: torch.Tensor,
    ) -> torch.Tensor:
        """See Backbone."""
        batch = len(x_BCTHW)
        if self._expand_timesteps:
            hidden = [_with_picture(x_CTHW, condition) for x_CTHW, condition in zip(x_BCTHW, conditions, strict=True)]
            timesteps = self._token_timesteps(x_BCTHW.shape[2:], timestep).expand(batch, -1)
        else:
            hidden = [torch.cat([x, condition.canvas_CTHW]) for x, condition in zip(x_BCTHW, conditions, strict=True)]
            timesteps = timestep.expand(batch)
        image_embeds = [embeds for condition in conditions for embeds in condition.image_embeds]
        level = float(timestep)
        transformer = self._experts.at(self._stage(level))
        if level in self._before_switch:
            self._experts.load_ahead(1)
        return transformer(
            hidden_states=torch.stack(hidden).to(self._dtype),
            timestep=timesteps,
            encoder_hidden_states=prompt_embeds.expand(batch, -1, -1).to(self._dtype),
            encoder_hidden_states_image=torch.cat(image_embeds).to(self._dtype) if image_embeds else None,
            return_dict=False,
        )[0]

    def _token_timesteps(self, tile: Sequence[int], timestep: torch.Tensor) -> torch.Tensor:
        """(1, tokens): 0 where the first frame is given, `timestep` elsewhere."""
        tokens_T, tokens_H, tokens_W = self._tokens(tile)
        timesteps_TN = timestep.to(torch.float32).repeat(tokens_T, tokens_H * tokens_W)
        timesteps_TN[0] = 0.0
        return timesteps_TN.flatten()[None]

    def finish(self, x_CTHW: torch.Tensor, condition: Callable[[], Conditioning]) -> torch.Tensor:
        """See Backbone; with timesteps per token the first latent frame is the picture's, never a sample."""
        return _with_picture(x_CTHW, condition()) if self._expand_timesteps else x_CTHW

    def _tokens(self, tile: Sequence[int]) -> tuple[int, int, int]:
        """Tokens (T, H, W) of a tile in latent cells."""
        patch = self._config.patch_size
        return tile[0] // patch[0], tile[1] // patch[1], tile[2] // patch[2]

    def _attention_lengths(self, tile: Sequence[int]) -> list[tuple[int, int]]:
        """(queries, keys) of the attentions in one forward: to itself, to the prompt, to the pictures."""
        tokens_T, tokens_H, tokens_W = self._tokens(tile)
        num_tokens = tokens_T * tokens_H * tokens_W
        lengths = [(num_tokens, num_tokens), (num_tokens, MAX_SEQUENCE_LENGTH)]
        if self._config.image_dim is not None:
            lengths.append((num_tokens, self._num_image_tokens))
        return lengths

    @property
    def _num_image_tokens(self) -> int:
        """Tokens of all pictures together."""
        encoder = read_json(self._path / "image_encoder" / "config.json", "image_size", "patch_size")
        return self._config.pos_embed_seq_len or (encoder["image_size"] // encoder["patch_size"]) ** 2 + 1

    def _compile(self, tiles: Sequence[tuple[int, int, int, int]]) -> float:
        """Compile the repeated block for each tile shape by one forward of zeros each; seconds that it took."""
        started_s = time.perf_counter()
        for transformer in self._experts.all:
            transformer.compile_repeated_blocks(fullgraph=True, dynamic=False)
        limit = max(torch._dynamo.config.recompile_limit, 2 * len(tiles))  # windows that move have many shapes
        with torch.inference_mode(), torch._dynamo.config.patch(recompile_limit=limit):
            for batch, *tile in dict.fromkeys(tiles):
                x_CTHW, condition, embeds = self._zeros(tile)
                timestep = torch.tensor(self._scheduler_config.get("num_train_timesteps", 1000), device=self._device)
                self.predict(x_CTHW.expand(batch, -1, -1, -1, -1), [condition] * batch, timestep, embeds)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter() - started_s

    def _zeros(self, tile: Sequence[int]) -> tuple[torch.Tensor, Conditioning, torch.Tensor]:
        """Latents, conditioning and prompt embeddings of a tile, all zero."""
        config, device = self._config, self._device
        x_CTHW = torch.zeros(config.out_channels, *tile, device=device)
        channels = config.out_channels if self._expand_timesteps else config.in_channels - config.out_channels
        frames = 1 if self._expand_timesteps else tile[0]
        canvas_CTHW = torch.zeros(channels, frames, *tile[1:], device=device)
        embeds: tuple[torch.Tensor, ...] = ()
        if config.image_dim is not None:
            num_pictures = 1 if config.pos_embed_seq_len is None else 2
            num_tokens = self._num_image_tokens // num_pictures
            embeds = (torch.zeros(num_pictures, num_tokens, config.image_dim, device=device),)
        prompt_embeds = torch.zeros(MAX_SEQUENCE_LENGTH, config.text_dim, device=device)
        return x_CTHW, Conditioning(canvas_CTHW, embeds), prompt_embeds


def _with_picture(x_CTHW: torch.Tensor, condition: Conditioning) -> torch.Tensor:
    """The latents with the picture's own in place of the first latent frame."""
    return torch.cat([condition.canvas_CTHW.to(x_CTHW.dtype), x_CTHW[:, 1:]], dim=1)
