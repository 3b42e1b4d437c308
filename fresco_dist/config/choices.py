"""The values of keys that have a few by name."""

from enum import Enum


class Dtype(Enum):
    """Precision of weights: `model.dtype` of transformer and text encoder, `model.vae_dtype`. The canvas is float32."""

    float32 = "float32"
    bfloat16 = "bfloat16"


class Attention(Enum):
    """Attention backends of diffusers' dispatcher; auto takes the first of `models.attention.AUTO_ORDER`."""

    auto = "auto"
    native = "native"
    cudnn = "cudnn"
    flash = "flash"
    flash3 = "flash3"
    sage = "sage"
    xformers = "xformers"


class Quantization(Enum):
    """Weights below `model.dtype`; fp8: float8 weights, activations quantised as they come."""

    fp8 = "fp8"


class ExpertOffload(Enum):
    """Where the second expert is: on the GPU; there from the last high-noise step on; only while it is in use."""

    hold = "hold"
    ahead = "ahead"
    swap = "swap"


class Offload(Enum):
    """Transformer weights in host memory; group: the next block is loaded while one computes."""

    group = "group"


class Expert(Enum):
    """The transformers of a model with two of them, by the noise level they serve."""

    high_noise = "high_noise"
    low_noise = "low_noise"

    @property
    def stage(self) -> int:
        """Its place among the model's transformers."""
        return list(Expert).index(self)


class ImageEmbedding(Enum):
    """What a model with an image encoder embeds for a window: the whole picture, or the window's own crop."""

    picture = "picture"
    window = "window"


class ExecutorKind(Enum):
    """Where workers run."""

    ray = "ray"
    inprocess = "inprocess"


class Border(Enum):
    """Windows that would leave the canvas, of a grid that is shifted: cut at its border, or moved inside."""

    cut = "cut"
    inside = "inside"


class Through(Enum):
    """What a level takes of the one below: its clean latents, resized, or its pixels, resized and encoded again."""

    latents = "latents"
    pixels = "pixels"


class RegionMode(Enum):
    """Prompts by region: a window is predicted for each that counts in it, or only for the one that has most of it."""

    blend = "blend"
    dominant = "dominant"


class DispatchMode(Enum):
    """How the tiles of a step meet: in one all-reduce per step, or cell by cell without a barrier."""

    allreduce = "allreduce"
    wavefront = "wavefront"


class VideoFormat(Enum):
    """What the video is written as; see `config.formats`."""

    h264 = "h264"
    h265 = "h265"
    av1 = "av1"
    prores = "prores"
    prores_4444 = "prores_4444"
    ffv1 = "ffv1"
    png = "png"
    frames = "frames"
