"""Pictures in memory, wherever a setting names one."""

import numpy as np
import pytest
from conftest import make_picture
from PIL import Image

import fresco_dist
from fresco_dist.api.pictures import with_files


@pytest.mark.parametrize("mode", ["P", "L", "LA", "HSV", "CMYK", "YCbCr", "RGBX", "RGBA", "RGBa", "1", "I;16", "LAB"])
def test_picture_of_any_mode_is_taken(tmp_path, mode):
    size, pixels = (8, 8), bytes(range(192))
    if mode in ("LAB", "I;16"):  # which Pillow does not convert to
        image, like = Image.frombytes(mode, size, pixels[: 192 if mode == "LAB" else 128]), None
    else:
        image, like = make_picture(*size).convert("RGBA").convert(mode), "RGB"
    with Image.open(with_files({"image": image}, tmp_path)["image"]) as saved:
        assert saved.size == size and saved.convert(like).tobytes() == image.convert(like).tobytes()


@pytest.mark.parametrize("picture", [Image.new("F", (4, 4)), np.zeros((0, 3)), np.zeros((4, 0, 3), np.uint8)])
def test_picture_that_is_none_is_bad_input(tmp_path, picture):
    with pytest.raises(fresco_dist.InputError, match="image"):
        with_files({"image": picture}, tmp_path)


@pytest.mark.parametrize("kind", [np.asarray, lambda image: np.asarray(image) / 255.0, lambda image: image, None])
def test_picture_is_a_file_an_image_or_an_array(animate, picture_path, kind):
    image = picture_path if kind is None else kind(Image.open(picture_path))
    of_file = animate(picture_path).figures["latents_sha256"]
    assert animate(image).figures["latents_sha256"] == of_file


def test_maps_may_be_arrays(animate, picture_path):
    moving = np.zeros((48, 96), dtype=bool)
    moving[:, :48] = True
    clip = animate(picture_path, fusion="regional", **{"fusion.activity_map": moving, "fusion.cutoff_background": 1})
    other = animate(picture_path, fusion="regional", **{"fusion.activity_map": ~moving, "fusion.cutoff_background": 1})
    assert clip.figures["latents_sha256"] != other.figures["latents_sha256"]


def test_picture_that_is_cut_off_or_closed_is_bad_input(animate, picture_path, tmp_path):
    (tmp_path / "cut.png").write_bytes(picture_path.read_bytes()[:300])
    with Image.open(picture_path) as closed:
        pass
    for image in (Image.open(tmp_path / "cut.png"), closed):
        with pytest.raises(fresco_dist.InputError, match="^image: the picture cannot be read"):
            animate(image)
