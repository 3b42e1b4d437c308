"""The run's configuration: typed schemas whose checks name the key, the value, what is allowed and a remedy.

Owns every rule about values that needs nothing but the values themselves. It never reads a file, a machine or an
environment variable (but for where `~` is): rules that need the image, the model or the cluster live where those are
read.
Values stand in `conf/`; the fields below have no defaults of their own except "not given".
"""

from dataclasses import dataclass

from fresco_dist.config.canvas import FusionConfig, RegionConfig, Sam3Config, TilesConfig
from fresco_dist.config.checks import InputError, check_sigmas, require
from fresco_dist.config.choices import (
    Attention,
    Border,
    DispatchMode,
    Dtype,
    ExecutorKind,
    Expert,
    ExpertOffload,
    ImageEmbedding,
    Offload,
    Quantization,
    RegionMode,
    Through,
    VideoFormat,
)
from fresco_dist.config.cluster import ClusterConfig, DispatchConfig, StoreConfig
from fresco_dist.config.formats import FORMATS, Encoding
from fresco_dist.config.model import LoraConfig, ModelConfig
from fresco_dist.config.paths import expanded
from fresco_dist.config.sampling import PriorConfig, SamplerConfig
from fresco_dist.config.video import MAX_SIDE_PX, VideoConfig, read_rate

__all__ = [
    "Attention",
    "Border",
    "ClusterConfig",
    "Config",
    "DispatchConfig",
    "DispatchMode",
    "Dtype",
    "Encoding",
    "ExecutorKind",
    "Expert",
    "ExpertOffload",
    "FORMATS",
    "FusionConfig",
    "ImageEmbedding",
    "InputError",
    "LoraConfig",
    "MAX_SIDE_PX",
    "ModelConfig",
    "Offload",
    "PriorConfig",
    "Quantization",
    "RegionConfig",
    "RegionMode",
    "SAM3",
    "Sam3Config",
    "SamplerConfig",
    "StoreConfig",
    "Through",
    "TilesConfig",
    "VideoConfig",
    "VideoFormat",
    "check_sigmas",
    "expanded",
    "read_rate",
    "require",
]

SAM3 = "sam3"  # fusion.activity_map: not a picture's file


@dataclass
class Config:
    """Everything that decides a run; see the key table in conf/README.md."""

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
    preview: bool = True
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
        require(0 <= self.seed < 2**64, "seed", self.seed, "in [0, 2^64)", "Try 0.")
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
