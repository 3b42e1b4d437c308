"""What a run is made of, read from files: pictures, maps, masks, texts; each once per distinct file and size."""

import hashlib
from dataclasses import asdict
from functools import cache, lru_cache, partial
from importlib.resources import files
from pathlib import Path

import numpy as np

from fresco_dist.config import Config, InputError, ModelConfig, expanded
from fresco_dist.media.picture_files import what_is_left
from fresco_dist.media.pictures import (
    read_image,
    read_last_image,
    read_light,
    read_mask,
    resize_image,
    resize_mask,
)
from fresco_dist.method.builder import Shares, Size
from fresco_dist.method.regions import cover, feather, share_out
from fresco_dist.models.fingerprint import digest_folder, fingerprint
from fresco_dist.models.texts import note_of_text
from fresco_dist.runtime.job import Job
from fresco_dist.schedule.plan import Plan

ASSETS = Path(str(files("fresco_dist") / "assets"))


class Inputs:
    """The files of runs that are prepared together; what they have in common is the same object.

    Of pictures at their own size only the last one is kept.
    """

    def __init__(self) -> None:
        self._read = lru_cache(maxsize=1)(read_image)
        self._read_last = lru_cache(maxsize=1)(read_last_image)
        self._size = cache(lambda path: self._read(path).size)
        self._resized = cache(self._resize)
        self._light = cache(read_light)
        self._masks = lru_cache(maxsize=16)(read_mask)  # for the next level
        self._shares: dict[str, np.ndarray] = {}
        self._fingerprints: dict[str, str] = {}
        self._left = cache(lambda path, key: tuple(what_is_left(path, key)))
        self._texts: dict[tuple[str, ...], str] = {}

    def image_px(self, config: Config) -> tuple[int, int]:
        """(width, height) of the picture to animate; raises InputError, as all below."""
        return self._size(picture_path(config.image))

    def job(self, config: Config, plan: Plan) -> Job:
        """What the workers are told of a run."""
        first, last = picture_path(config.image), _path(config.image_last)
        sizes_px = [plan.size_px(level) for level in range(len(plan.levels))]
        return Job(
            config=config,
            plan=plan,
            prompts=(_prompt(config), *config.region_prompts, config.negative_prompt),
            pictures=tuple(self._resized(first, size) for size in sizes_px),
            last_pictures=tuple(self._resized(last, size, plan.image_px) for size in sizes_px) if last else None,
            activity=self.activity(config, plan),
            maps=self.maps(config, plan),
            segmenter=segmenter(config),
            model=self.fingerprint(config.model),
        )

    def fingerprint(self, model: ModelConfig) -> str:
        """See `models.fingerprint`."""
        if repr(model) not in self._fingerprints:
            self._fingerprints[repr(model)] = fingerprint(model)
        return self._fingerprints[repr(model)]

    def activity(self, config: Config, plan: Plan) -> np.ndarray | None:
        """The activity map, bool (H, W) latent cells, where fusion needs it or one is given to be measured by.

        None also where one is to be made.
        """
        path = _activity_path(config)
        return self._light(path, plan.image_px, plan.canvas.canvas, "fusion.activity_map") if path else None

    def maps(self, config: Config, plan: Plan) -> tuple[np.ndarray, ...]:
        """The map by which the recipe's strengths differ, bool (H, W) latent cells, by level; none: they do not."""
        path, key = _path(config.fusion.detail_map), "fusion.detail_map"
        if config.fusion.takes_activity_map:
            path, key = _activity_path(config), "fusion.activity_map"
        return tuple(self._light(path, plan.image_px, level.canvas, key) for level in plan.levels) if path else ()

    def notes(self, job: Job) -> list[str]:
        """What is odd about the files and texts that are given."""
        config, found = job.config, {}
        if job.activity is not None:
            found[f"fusion.activity_map={config.fusion.activity_map}"] = job.activity
        if config.fusion.detail_map:
            found[f"fusion.detail_map={config.fusion.detail_map}"] = job.maps[-1]
        for i, region in enumerate(config.regions):
            if region.mask is not None:
                mask = self._masks(_path(region.mask), job.plan.image_px, key=f"regions[{i}].mask")
                found[f"regions[{i}].mask={region.mask}"] = np.asarray(mask) > 127
        return [
            *(text for name, map_HW in found.items() if (text := note_of_map(name, map_HW))),
            *(text for key, path in pictures_of(config).items() for text in self._left(path, key)),
            *(text for number in job.plan.prompts if (text := self._note_of_prompt(job, number))),
        ]

    def _note_of_prompt(self, job: Job, number: int) -> str:
        names = "prompt", *(f"regions: {prompt[:30]}" for prompt in job.config.region_prompts), "negative_prompt"
        return self._long(names[number], job.prompts[number], job.config.model, job.plan.spec.max_tokens)

    def _long(self, name: str, text: str, model: ModelConfig, max_tokens: int | None) -> str:
        asked = name, text, repr(model)
        if asked not in self._texts:
            self._texts[asked] = note_of_text(name, text, model, max_tokens)
        return self._texts[asked]

    def shares(self, config: Config, image_px: tuple[int, int]) -> Shares | None:
        """The shares of the prompts at a level of any size; None without regions."""
        return partial(self._shares_at, config, image_px) if config.regions else None

    def digest_masks(self, config: Config) -> str:
        """SHA-256 of the files of regions' masks; raises InputError if one cannot be read."""
        digest = hashlib.sha256()
        for i, region in enumerate(config.regions):
            if region.mask is not None:
                mask = self._masks(_path(region.mask), self.image_px(config), key=f"regions[{i}].mask")
                digest.update(mask.tobytes())
        return digest.hexdigest()

    def _shares_at(self, config: Config, image_px: tuple[int, int], size: Size) -> np.ndarray:
        name = repr((config.regions, config.region_feather, image_px, size))
        if name not in self._shares:
            self._shares[name] = self._share_out(config, image_px, size)
        return self._shares[name]

    def _share_out(self, config: Config, image_px: tuple[int, int], size: Size) -> np.ndarray:
        """Float32 (prompts, H, W); the first is what is left for the picture's own prompt."""
        width_px = config.region_feather * min(image_px)
        widths = tuple(width_px * cells / side for cells, side in zip(size, image_px[::-1]))
        masks_RHW = np.zeros((len(config.region_prompts), *size))
        for i, region in enumerate(config.regions):
            if region.box is not None:
                mask_HW = cover(region.box, size)
            else:
                mask_HW = resize_mask(self._masks(_path(region.mask), image_px, key=f"regions[{i}].mask"), size)
            masks_RHW[config.region_prompts.index(region.prompt)] += feather(mask_HW, widths)
        return share_out(masks_RHW.clip(max=1.0))  # boxes of one prompt may overlap

    def _resize(self, path: Path, size: tuple[int, int], like_px: tuple[int, int] | None = None) -> np.ndarray:
        return resize_image(self._read_last(path, like_px) if like_px else self._read(path), size)


def digest_files(config: Config, model: str | None = None) -> str:
    """SHA-256 of the files that a run reads: pictures, maps, the model; "" if one cannot be read.

    `model` is its fingerprint, if that is known.
    """
    try:
        contents = [hashlib.sha256(path.read_bytes()).digest() for path in pictures_of(config).values()]
        models = (model or fingerprint(config.model)) + segmenter(config)
        return hashlib.sha256(b"".join([*contents, models.encode()])).hexdigest()
    except (OSError, InputError):  # which is told when it is needed
        return ""


def pictures_of(config: Config) -> dict[str, Path]:
    """The files of pictures, maps and masks that are given, or the bundled picture's, by their keys."""
    given = {"image_last": config.image_last, "fusion.detail_map": config.fusion.detail_map}
    given |= {} if config.segments else {"fusion.activity_map": config.fusion.activity_map}
    given |= {f"regions[{i}].mask": region.mask for i, region in enumerate(config.regions)}
    return {"image": picture_path(config.image)} | {key: path for key, name in given.items() if (path := _path(name))}


def segmenter(config: Config) -> str:
    """What makes the activity map, by the contents of its files and with all its settings; "" if none is made."""
    if not config.segments:
        return ""
    settings = asdict(config.sam3)
    return repr((digest_folder(expanded(settings.pop("path")), "sam3.path"), sorted(settings.items())))


def note_of_map(name: str, map_HW: np.ndarray) -> str:
    """What there is to say of a map that tells nothing apart; "" of others."""
    if map_HW.any() and not map_HW.all():
        return ""
    return f"{name} is {'light' if map_HW.any() else 'dark'} everywhere: it tells no part of the picture from another"


def _path(text: str | None) -> Path | None:
    return expanded(text) if text else None


def _activity_path(config: Config) -> Path | None:
    path = config.fusion.activity_map
    if config.segments:
        return None
    if path is None and config.fusion.takes_activity_map:
        if config.image:
            raise InputError(
                "fusion.activity_map must be a picture, light where motion is expected, for your own image; got null."
                " Or sam3, with sam3.path=DIRECTORY."
            )
        return ASSETS / "fresco_activity.png"
    return _path(path)


def picture_path(image: str | None) -> Path:
    """Where the picture of a run lies, by its key `image`."""
    return _path(image) or ASSETS / "fresco.png"


def _prompt(config: Config) -> str:
    if config.prompt is not None or config.image:
        return config.prompt or ""
    return (ASSETS / "fresco.txt").read_text().strip()
