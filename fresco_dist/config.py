"""The run's configuration: typed schemas whose checks name the key, the value, what is allowed and a remedy.

Owns every rule about values that needs nothing but the values themselves. It never reads a file, a machine or an
environment variable: rules that need the image, the model or the cluster live where those are read.
Values stand in `conf/`; the fields below have no defaults of their own except "not given".
"""

import json
import math
from dataclasses import dataclass, replace
from enum import Enum
from itertools import pairwise
from typing import ClassVar

MAX_SIDE_PX = 16384  # of a video
SAM3 = "sam3"  # fusion.activity_map: not a picture's file


class InputError(ValueError):
    """Something the user can mend: one line with key, value, what is allowed. The command exits with code 2."""


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


def require(condition: bool, key: str, value: object, allowed: str, remedy: str) -> None:
    """Raise InputError "KEY must be ALLOWED; got VALUE. REMEDY" unless `condition` holds."""
    if not condition:
        raise InputError(f"{key} must be {allowed}; got {value}. {remedy}")


@dataclass
class RegionConfig:
    """A part of the picture with a prompt of its own: where the mask, a picture, is light, or inside a box.

    `box` is [left, top, right, bottom] in shares of the picture.
    """

    prompt: str = ""
    mask: str | None = None
    box: list[float] | None = None

    def check(self, key: str) -> None:
        """Raise InputError, with the key of this entry, if it makes no sense."""
        require(self.prompt.strip() != "", f"{key}.prompt", '""', "a text", "Say what happens there.")
        given = [name for name in ("mask", "box") if getattr(self, name) is not None]
        allowed, remedy = "given a mask or a box", "Add one of mask: FILE and box: [left, top, right, bottom]."
        require(len(given) == 1, key, " and ".join(given) or "neither", allowed, remedy)
        require(self.mask != "", f"{key}.mask", '""', "a picture's file", "Give the file's path.")
        if self.box is not None:
            in_order = len(self.box) == 4 and all(0 <= a < b <= 1 for a, b in zip(self.box[:2], self.box[2:]))
            allowed = "[left, top, right, bottom] in shares of the picture, 0 to 1, left < right, top < bottom"
            require(in_order, f"{key}.box", self.box, allowed, "The left half is [0, 0, 0.5, 1].")


@dataclass
class VideoConfig:
    """The clip: frames, frames per second, and the cap [width, height] in pixels (turned for portrait images)."""

    num_frames: int
    fps: int
    max_size: list[int]

    def __post_init__(self) -> None:
        require(self.num_frames >= 1, "video.num_frames", self.num_frames, "at least 1", "Try 81.")
        require(1 <= self.fps <= 240, "video.fps", self.fps, "in [1, 240]", "Try 16.")
        require(
            len(self.max_size) == 2 and min(self.max_size) >= 16 and max(self.max_size) <= MAX_SIDE_PX,
            "video.max_size",
            self.max_size,
            f"[width, height] in pixels, each in [16, {MAX_SIDE_PX}], the most that H.264 takes",
            "Try [3840,2160].",
        )


@dataclass
class TilesConfig:
    """Windows: [height, width] in pixels, overlap as a share of the window, smallest blending weight at an edge.

    `fit` lets the planner raise the overlap a little, so that the windows fill the workers; `batch` is the number of
    windows per forward, null what the planner takes for the GPU. What it chooses is recorded. Where windows lie side by
    side on a grid that is shifted at each step, they overlap in the first `overlap_steps` steps nevertheless.
    """

    window: list[int]
    overlap: float
    min_weight: float
    fit: bool
    batch: int | None
    overlap_steps: int
    border: Border

    def __post_init__(self) -> None:
        require(
            len(self.window) == 2 and min(self.window) >= 1,
            "tiles.window",
            self.window,
            "[height, width] in pixels, each at least 1",
            "Try the model's native size.",
        )
        require(0.0 <= self.overlap < 1.0, "tiles.overlap", self.overlap, "in [0, 1)", "Try 0.5.")
        require(0.0 < self.min_weight <= 1.0, "tiles.min_weight", self.min_weight, "in (0, 1]", "Try 0.05.")
        batch = self.batch
        require(batch is None or 1 <= batch <= 64, "tiles.batch", batch, "in [1, 64], or null", "Try 1.")
        require(self.overlap_steps >= 0, "tiles.overlap_steps", self.overlap_steps, "at least 0", "Try 1.")


@dataclass(kw_only=True)
class FusionConfig:
    """What holds the tiles together: a recipe by its name, and what all recipes have; see `method.recipes`."""

    method: str
    activity_map: str | None = None

    takes_activity_map: ClassVar[bool] = False
    detail_map: ClassVar[str | None] = None  # of recipes that have such a key


@dataclass
class Sam3Config:
    """The activity map that SAM 3 makes of a picture (the paper's C.4), with `fusion.activity_map=sam3`.

    Of each prompt, masks with a score above `score_threshold` are kept, each where its probability is above
    `mask_threshold`, unless it covers more than `max_area` of the picture, or more than `max_border` of it lies within
    `border` of the picture's edge; then it grows by `dilation` on all sides. `border` and `dilation` are shares of the
    picture's shorter side. What a prompt's masks cover counts once; a latent cell is active where the mean over the
    prompts is above `threshold`.
    """

    path: str | None
    prompts: list[str]
    score_threshold: float
    mask_threshold: float
    max_area: float
    border: float
    max_border: float
    dilation: float
    threshold: float

    def __post_init__(self) -> None:
        prompts, allowed = self.prompts, "at least one text, none of them empty"
        named = bool(prompts) and all(prompt.strip() for prompt in prompts)
        require(named, "sam3.prompts", prompts, allowed, "Try [person,vegetation,vehicles].")
        require(self.path != "", "sam3.path", '""', "a directory or null", "Give the directory's path.")
        for name in ("score_threshold", "mask_threshold", "max_area", "border", "max_border", "dilation", "threshold"):
            share = getattr(self, name)
            require(0.0 <= share <= 1.0, f"sam3.{name}", share, "in [0, 1]", "See conf/config.yaml.")


def check_sigmas(sigmas: list[float], group: str) -> None:
    """Raise InputError unless these can be the noise levels of steps."""
    falling = all(high > low for high, low in pairwise([*sigmas, 0.0])) and 0.0 < max(sigmas, default=2.0) <= 1.0
    allowed = "falling noise levels in (0, 1], one per step"
    require(falling, f"{group}.sigmas", sigmas, allowed, "Try [1.0,0.9,0.75,0.5].")


@dataclass
class SamplerConfig:
    """Sampler steps, classifier-free guidance scale (1 = off), and the noise levels.

    `guidance_scale_2` is for the low-noise expert (null = the same); `shift` moves the scheduler's own noise levels
    (null = the model's shift); `sigmas` replaces them: the level of each step, used as given. After `stop_after` steps
    a run stops with a preview, and the same without it goes on from there.
    """

    num_steps: int
    guidance_scale: float
    guidance_scale_2: float | None = None
    shift: float | None = None
    sigmas: list[float] | None = None
    stop_after: int | None = None

    def __post_init__(self) -> None:
        require(self.num_steps >= 1, "sampler.num_steps", self.num_steps, "at least 1", "Try 6.")
        for name in ("guidance_scale", "guidance_scale_2"):
            scale = getattr(self, name)
            in_range = scale is None or 1.0 <= scale <= 100.0
            require(in_range, f"sampler.{name}", scale, "in [1, 100]", "1 switches guidance off.")
        finite = self.shift is None or 0 < self.shift < math.inf
        require(finite, "sampler.shift", self.shift, "greater than 0 and finite, or null", "Try 3.")
        if self.sigmas is not None:
            check_sigmas(self.sigmas, "sampler")
            remedy = f"Set sampler.num_steps={len(self.sigmas)}."
            allowed = "the length of sampler.sigmas"
            require(len(self.sigmas) == self.num_steps, "sampler.num_steps", self.num_steps, allowed, remedy)
            remedy = "They are used as given."
            require(self.shift is None, "sampler.shift", self.shift, "null with sampler.sigmas", remedy)
        stop, last = self.stop_after, self.num_steps - 1
        allowed = f"in [1, {last}], fewer than sampler.num_steps, or null" if last else "null with one step"
        require(stop is None or 1 <= stop <= last, "sampler.stop_after", stop, allowed, "Leave it out to run them all.")


@dataclass
class PriorConfig:
    """The thumbnail's clip: area in pixels at the image's aspect ratio, sampler steps and noise levels.

    `levels` is the number of canvases below the video's, null as many as the recipe takes.

    Null `num_steps`: as many as there are `sigmas`, without those the sampler's. Null `sigmas`: the sampler's own, for
    as many steps as it has; for others the noise scheduler's.
    """

    area: int
    num_steps: int | None = None
    sigmas: list[float] | None = None
    levels: int | None = None

    def __post_init__(self) -> None:
        levels = self.levels
        require(levels is None or 1 <= levels <= 8, "prior.levels", levels, "in [1, 8], or null", "Try 2.")
        require(self.area >= 256, "prior.area", self.area, "at least 256 pixels", "Try the model's native area.")
        number, sigmas = self.num_steps, self.sigmas
        allowed, remedy = "at least 1", "null takes sampler.num_steps."
        require(number is None or number >= 1, "prior.num_steps", number, allowed, remedy)
        if sigmas is not None:
            check_sigmas(sigmas, "prior")
            allowed, remedy = "null or the length of prior.sigmas", f"Set prior.num_steps={len(sigmas)}."
            require(number in (None, len(sigmas)), "prior.num_steps", number, allowed, remedy)

    def sampler(self, of_video: SamplerConfig) -> SamplerConfig:
        """The thumbnail's sampler, given the video's."""
        sigmas = self.sigmas
        num_steps = self.num_steps or (of_video.num_steps if sigmas is None else len(sigmas))
        if sigmas is None and num_steps == of_video.num_steps:
            sigmas = of_video.sigmas
        shift = of_video.shift if sigmas is None else None
        return replace(of_video, num_steps=num_steps, sigmas=sigmas, shift=shift, stop_after=None)


@dataclass
class LoraConfig:
    """Low-rank weights to add to a transformer: a safetensors file, its weight, and one expert (null = every one)."""

    path: str
    weight: float = 1.0
    expert: Expert | None = None

    def __post_init__(self) -> None:
        require(self.path != "", "model.loras: path", '""', "a safetensors file", "Give the file's path.")
        allowed = "a finite number other than 0"
        finite = math.isfinite(self.weight) and self.weight != 0
        require(finite, "model.loras: weight", self.weight, allowed, "1 is the trained strength.")


@dataclass
class ModelConfig:
    """Which model: a registered backbone and a directory in diffusers format (null = the embedded model).

    `vae_tile` is the side of the VAE's tiles in pixels (null = diffusers' own), which start every three quarters of it.
    """

    backbone: str
    path: str | None
    dtype: Dtype
    vae_dtype: Dtype
    attention: Attention
    image_embedding: ImageEmbedding
    loras: list[LoraConfig]
    fuse_loras: bool
    compile: bool
    expert_offload: ExpertOffload
    quantization: Quantization | None = None
    offload: Offload | None = None
    vae_tile: int | None = None
    forward_s: float = 0.0  # synthetic backbone only: seconds that a forward waits

    def __post_init__(self) -> None:
        require(0 <= self.forward_s <= 3600, "model.forward_s", self.forward_s, "in [0, 3600] seconds", "Try 0.2.")
        tile = self.vae_tile
        require(tile is None or tile >= 1, "model.vae_tile", tile, "at least 1 pixel, or null", "Try 256.")
        if not self.loras:
            self._exclude("no model.loras", "model.fuse_loras", self.fuse_loras, True)
        if self.quantization is not None:
            self._exclude("model.quantization=fp8", "model.dtype", self.dtype, Dtype.bfloat16)
            self._exclude("model.quantization=fp8", "model.expert_offload", self.expert_offload, ExpertOffload.hold)
        if self.offload is not None:
            self._exclude("model.offload=group", "model.quantization", self.quantization, None)
            self._exclude("model.offload=group", "model.compile", self.compile, False)
            self._exclude("model.offload=group", "model.expert_offload", self.expert_offload, ExpertOffload.hold)

    @staticmethod
    def _exclude(other: str, key: str, value: object, needed: object) -> None:
        """Raise InputError unless `value` is the one that `other` needs."""
        got, allowed = (v.value if isinstance(v, Enum) else json.dumps(v) for v in (value, needed))
        require(value is needed, key, got, f"{allowed} with {other}", f"Set {key}={allowed}.")


@dataclass
class ClusterConfig:
    """Where it runs. Null num_workers = one per GPU, without GPUs one per CPU up to 4.

    `num_nodes` spreads the workers evenly over that many nodes; null packs them on as few as possible.
    `cpus_per_worker` is Ray's `num_cpus`; its whole part (at least 1) is the number of threads of a worker, and
    belongs to the result. `timeout_s` bounds every wait for a task, `start_timeout_s` those for room and for
    workers to start; `address` joins a running Ray cluster.
    """

    executor: ExecutorKind
    num_nodes: int | None
    num_workers: int | None
    cpus_per_worker: float
    gpus_per_worker: int | None
    address: str | None
    timeout_s: float
    start_timeout_s: float
    gpu_memory_gb: float | None = None  # null: that of the GPUs at hand

    def __post_init__(self) -> None:
        memory = self.gpu_memory_gb
        allowed = "greater than 0 and finite, or null"
        finite = memory is None or 0 < memory < math.inf
        require(finite, "cluster.gpu_memory_gb", memory, allowed, "Try 80.")
        key = "cluster.num_workers"
        require(self.num_workers is None or self.num_workers >= 1, key, self.num_workers, "at least 1", "Try 1.")
        require(
            self.executor is ExecutorKind.ray or self.num_workers in (None, 1),
            key,
            self.num_workers,
            "1 with cluster.executor=inprocess",
            "Use cluster.executor=ray for more workers.",
        )
        num_nodes = 1 if self.num_nodes is None else self.num_nodes
        require(num_nodes >= 1, "cluster.num_nodes", self.num_nodes, "at least 1", "null takes as few as possible.")
        remedy = f"Try {num_nodes}."
        allowed = f"a multiple of cluster.num_nodes ({num_nodes})"
        require(self.num_workers is None or self.num_workers % num_nodes == 0, key, self.num_workers, allowed, remedy)
        require(self.cpus_per_worker > 0, "cluster.cpus_per_worker", self.cpus_per_worker, "greater than 0", "Try 1.")
        require(
            self.gpus_per_worker in (None, 0, 1),
            "cluster.gpus_per_worker",
            self.gpus_per_worker,
            "0 or 1",
            "A worker holds one model replica on one GPU.",
        )
        for name, usual in (("timeout_s", 1800), ("start_timeout_s", 120)):
            seconds, allowed = getattr(self, name), "greater than 0 and at most 1e6 seconds"
            require(0 < seconds <= 1e6, f"cluster.{name}", seconds, allowed, f"Try {usual}.")

    @property
    def num_threads(self) -> int:
        """CPU threads of one worker."""
        return max(1, int(self.cpus_per_worker))


@dataclass
class DispatchConfig:
    """How work reaches the workers."""

    mode: DispatchMode


@dataclass
class StoreConfig:
    """Where canvases, encodings and decoded tiles are kept, so that a run goes on where it ended.

    Null path: in the run folder, or the sweep's, until all is done. `max_gb`: the oldest go first; null: no limit.
    """

    enabled: bool
    path: str | None = None
    max_gb: float | None = None

    def __post_init__(self) -> None:
        size = self.max_gb
        allowed = "greater than 0 and finite, or null"
        require(size is None or 0 < size < math.inf, "store.max_gb", size, allowed, "Try 100.")
        require(self.path != "", "store.path", '""', "a folder, or null", "null keeps it in the run folder.")
        for name in ("path", "max_gb"):
            value = getattr(self, name)
            required = self.enabled or value is None
            require(required, f"store.{name}", value, "null with store.enabled=false", "Leave one of them out.")


@dataclass
class Config:
    """Everything that decides a run; see the key table in the README."""

    image: str | None
    image_last: str | None
    prompt: str | None
    negative_prompt: str
    regions: list[RegionConfig]
    region_mode: RegionMode
    region_feather: float
    seed: int
    video: VideoConfig
    tiles: TilesConfig
    fusion: FusionConfig
    sampler: SamplerConfig
    prior: PriorConfig
    model: ModelConfig
    cluster: ClusterConfig
    dispatch: DispatchConfig
    store: StoreConfig
    sam3: Sam3Config
    plan_only: bool = False
    metrics: bool = False
    dino_path: str | None = None

    def __post_init__(self) -> None:
        remedy = "Add metrics=true."
        require(
            self.metrics or self.dino_path is None, "dino_path", self.dino_path, "null without metrics=true", remedy
        )
        fusion = self.fusion
        require(
            fusion.activity_map is None or fusion.takes_activity_map or self.metrics,
            "fusion.activity_map",
            fusion.activity_map,
            "given only with fusion=regional, or with metrics=true, which measures its regions apart",
            "Add one of them.",
        )
        require(fusion.activity_map != "", "fusion.activity_map", '""', "a picture or null", "Give the file's path.")
        path, allowed, remedy = self.sam3.path, "a directory with SAM 3's weights", "Give sam3.path=DIRECTORY."
        require(path is not None or not self.segments, "sam3.path", path, allowed, remedy)
        allowed, remedy = "null without fusion.activity_map=sam3", "Leave it out."
        require(path is None or self.segments, "sam3.path", path, allowed, remedy)
        for i, region in enumerate(self.regions):
            region.check(f"regions[{i}]")
        share, allowed = self.region_feather, "in [0, 1], a share of the picture's shorter side"
        require(0.0 <= share <= 1.0, "region_feather", share, allowed, "Try 0.05; 0 is a hard edge.")
        require(0 <= self.seed < 2**32, "seed", self.seed, "in [0, 2^32)", "Try 0.")
        require(self.image != "", "image", '""', "a path or null", "null takes the bundled fresco.")
        require(self.image_last != "", "image_last", '""', "a path or null", "null leaves the end open.")

    @property
    def segments(self) -> bool:
        """Whether SAM 3 makes the activity map."""
        return self.fusion.activity_map == SAM3

    @property
    def region_prompts(self) -> tuple[str, ...]:
        """Those of the regions, each once."""
        return tuple(dict.fromkeys(region.prompt for region in self.regions))
