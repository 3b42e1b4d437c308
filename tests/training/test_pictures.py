"""Held-out pictures on disk: each kind is what it says, and the folder is a data set."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fresco_dist.evaluate.dataset import read_dataset
from fresco_dist.training import pictures
from fresco_dist.training.data import HELD_OUT_SEEDS
from fresco_dist.training.pictures import FIRST_SEEDS, MOST_PICTURES, scene_of
from fresco_dist.training.prompts import LIGHT, clause

SIZE = 256, 160


def write(folder: Path, *arguments: str) -> Path:
    pictures.main(["--out", str(folder), "--size", "96", "64", *arguments])
    return folder


def test_folder_of_all_kinds_is_a_data_set(tmp_path):
    folder = write(tmp_path / "p q", "--num-pictures", "2", "--kind", "all")
    dataset = read_dataset(folder)
    names = [f"{kind}_{index:02d}" for kind in ("light", "directions", "background") for index in (0, 1)]
    assert [picture.name for picture in dataset.pictures] == names and not dataset.left_out
    assert dataset.notes == ("columns that set nothing are left aside: kind",)
    for picture in dataset.pictures:
        files = {"image": folder / f"{picture.name}.png", "activity_map": folder / f"{picture.name}_activity.png"}
        assert picture.settings["image"] == str(files["image"])
        assert picture.settings["fusion.activity_map"] == str(files["activity_map"])
        assert picture.settings["prompt"] == (folder / f"{picture.name}.txt").read_text().strip()
        choice = json.loads((folder / "picture" / f"{picture.name}.yaml").read_text().partition("\n")[2])
        assert choice["fusion"]["activity_map"] == str(files["activity_map"])
    (folder / "metadata.jsonl").unlink()
    by_texts = {picture.name: picture.settings for picture in read_dataset(folder).pictures}
    assert by_texts == {picture.name: picture.settings for picture in dataset.pictures}


def test_pictures_of_a_kind_are_the_same_alone_and_together(tmp_path):
    alone = write(tmp_path / "alone", "--num-pictures", "1", "--kind", "background")
    together = write(tmp_path / "together", "--num-pictures", "1", "--kind", "all")
    assert (alone / "00.png").read_bytes() == (together / "background_00.png").read_bytes()
    assert [picture.name for picture in read_dataset(alone).pictures] == ["00"]


def test_seeds_are_held_out_and_panels_of_kinds_differ():
    firsts = sorted(FIRST_SEEDS[kind] for kind in pictures.TOGETHER)
    assert all(before + MOST_PICTURES <= after for before, after in zip(firsts, [*firsts[1:], HELD_OUT_SEEDS]))


@pytest.mark.parametrize("index", range(4))
def test_background_stands_still_but_for_what_the_prompt_moves(index):
    scene = scene_of("background", index, *SIZE)
    moving = [kind for kind in scene.kinds if scene.motions[kind].sign]
    assert 1 <= len(moving) <= 2 and len(moving) < len(scene.kinds)
    for kind in scene.kinds:
        says = clause(kind, scene.motions[kind])
        assert says in scene.prompt and ("still" in says) == (kind not in moving)
    frames, activity = scene.frames(9), scene.activity_of(9)
    changed = (frames != frames[:1]).any((0, 3))
    assert changed.any() and not (changed & ~activity).any() and activity.mean() < 0.35


@pytest.mark.parametrize("index", range(4))
def test_directions_are_named_and_one_sideways(index):
    scene = scene_of("directions", index, *SIZE)
    sideways = {scene.motions[kind].sign for kind in ("figures", "boats", "river", "clouds")}
    assert len(sideways) == 1 and sideways <= {-1, 1}
    word = "right" if sideways == {1} else "left"
    travellers = [kind for kind in scene.kinds if kind in ("figures", "boats", "river", "clouds")]
    assert travellers and scene.prompt.count(f" to the {word}.") == len(travellers)
    assert {scene_of("directions", i, 64, 64).motions["boats"].sign for i in range(8)} == {-1, 1}
    assert ("angels fly" not in scene.prompt) or ("fly up." in scene.prompt or "fly down." in scene.prompt)


def test_light_changes_in_turn_and_only_in_its_kind():
    signs = [scene_of("light", index, 96, 64).motions[LIGHT].sign for index in range(4)]
    assert signs == [-1, 1, -1, 1]
    assert all(LIGHT not in scene_of(kind, 0, 96, 64).motions for kind in ("open", "directions", "background"))


def test_written_map_is_white_where_things_move(tmp_path):
    folder = write(tmp_path, "--num-pictures", "1", "--size", "192", "128")
    activity = np.asarray(Image.open(folder / "00_activity.png"))
    assert set(np.unique(activity)) == {0, 255}
    assert np.array_equal(activity > 0, scene_of("open", 0, 192, 128).activity_of(9))


@pytest.mark.parametrize("number", ["0", "10001"])
def test_number_of_pictures_beyond_held_out_seeds_is_refused(tmp_path, number, capsys):
    with pytest.raises(SystemExit) as end:
        write(tmp_path / "out", "--num-pictures", number)
    assert end.value.code == 2 and "--num-pictures must be in [1, 10000]" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
