"""Data sets as people have them: what is read, what is left out and why, and the names of pictures."""

import csv
import json
from pathlib import Path

import pytest
from conftest import make_picture

from fresco_dist.config import InputError
from fresco_dist.evaluate.dataset import KEYS, MAX_NAME, Dataset, name_pictures, read_dataset
from fresco_dist.settings.keys import keys
from fresco_dist.settings.schema import compose_config

ODD_NAMES = ("1.png", "a=b.png", "two words, and more.png", "l'été 壁画.jpg", "[1].png", "${x}.png", "UPPER.PNG")
ODD_TEXTS = ('quoted "words", and commas', "two\nlines", "r\u2028s ünï 水", "42", "${seed}", "", "[a,b]")


def put(folder: Path, *names: str) -> None:
    """Pictures of 16 x 8 px."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        make_picture(16, 8).save(folder / name)


def put_lines(path: Path, *rows: dict | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))


def put_csv(path: Path, rows: list[list[str]], *, encoding: str = "utf-8", end: str = "\n") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding=encoding, newline="") as file:
        csv.writer(file, lineterminator=end).writerows(rows)


def prompts(dataset: Dataset) -> dict[str, str]:
    return {Path(picture.settings["image"]).name: picture.settings["prompt"] for picture in dataset.pictures}


def only(dataset: Dataset) -> dict:
    (picture,) = dataset.pictures
    return picture.settings


@pytest.mark.parametrize("encoding, end", [("utf-8", "\n"), ("utf-8-sig", "\r\n")])
def test_csv_keeps_texts_and_file_names_as_they_are(tmp_path, encoding, end):
    put(tmp_path, *ODD_NAMES)
    rows = [["file_name", "text"], *map(list, zip(ODD_NAMES, ODD_TEXTS))]
    put_csv(tmp_path / "metadata.csv", rows, encoding=encoding, end=end)
    dataset = read_dataset(tmp_path)
    assert prompts(dataset) == dict(zip(ODD_NAMES, ODD_TEXTS)) and not dataset.left_out
    assert dataset.notes == ("1 of 7 pictures have no text: their prompts are empty",)
    assert dataset.pictures[1].settings["image"] == str(tmp_path / "a=b.png")


def test_json_lines_keep_texts_and_types_and_skip_blank_lines(tmp_path):
    put(tmp_path, *ODD_NAMES)
    rows = [{"file_name": name, "text": text, "seed": 7} for name, text in zip(ODD_NAMES, ODD_TEXTS)]
    raw = [json.dumps(row, ensure_ascii=False) for row in rows]
    put_lines(tmp_path / "metadata.jsonl", "\ufeff" + raw[0], "", *raw[1:], "  ", "")
    dataset = read_dataset(tmp_path)
    assert prompts(dataset) == dict(zip(ODD_NAMES, ODD_TEXTS)) and not dataset.left_out
    assert dataset.pictures[0].settings["seed"] == 7


def test_metadata_one_level_down_is_read_relative_to_itself(tmp_path):
    put(tmp_path, "train/a.png", "test/deep/a.png", "shared.png", ".cache/c.png")
    put_lines(tmp_path / "train" / "metadata.jsonl", {"file_name": "a.png", "text": "one"})
    put_lines(
        tmp_path / "test" / "metadata.jsonl",
        {"file_name": "deep/a.png", "text": "two"},
        {"file_name": "../shared.png", "text": "three"},
    )
    put_lines(tmp_path / ".cache" / "metadata.jsonl", {"file_name": "c.png", "text": "hidden"})
    dataset = read_dataset(tmp_path)
    assert [picture.name for picture in dataset.pictures] == ["test_deep_a", "shared", "train_a"]
    assert [picture.settings["prompt"] for picture in dataset.pictures] == ["two", "three", "one"]
    assert dataset.pictures[0].settings["image"] == str(tmp_path / "test" / "deep" / "a.png")


def test_columns_of_keys_are_typed_and_others_are_named_once(tmp_path):
    put(tmp_path, "a.png", "b.png", "map.png", "end.png")
    header = ["file_name", "text", "seed", "fusion.cutoff", "sampler.sigmas", "tiles.fit", "region_mode"]
    header += ["negative_prompt", "fusion.activity_map", "image_last_file_name", "artist", "fusion", "metrics"]
    full = ["a.png", "x", "7.0", "1e-1", "[1.0, 0.5]", "True", "dominant", "7", "map.png", "end.png", "me", "f", "0.5"]
    put_csv(tmp_path / "metadata.csv", [header, full, ["b.png", "y", *[""] * 11]])
    dataset = read_dataset(tmp_path)
    first, second = (picture.settings for picture in dataset.pictures)
    assert first | {"seed": 7} == {
        "image": str(tmp_path / "a.png"), "prompt": "x", "seed": 7, "fusion.cutoff": 0.1, "sampler.sigmas": [1.0, 0.5],
        "tiles.fit": True, "region_mode": "dominant", "negative_prompt": "7",
        "fusion.activity_map": str(tmp_path / "map.png"), "image_last": str(tmp_path / "end.png"),
    }  # fmt: skip
    assert type(first["seed"]) is int
    assert second == {"image": str(tmp_path / "b.png"), "prompt": "y"}
    assert dataset.notes == ("columns that set nothing are left aside: artist, fusion, metrics",)


def test_seeds_of_64_bits_stay_exact_and_one_that_has_lost_digits_is_refused(tmp_path):
    """Spreadsheets write 1.8e19, pandas 12345678901234567890.0: the digits are gone."""
    put(tmp_path, "a.png", "b.png", "c.png")
    rows = [
        ["a.png", "x", str(2**64 - 1)],
        ["b.png", "x", "1.2345678901234567e+19"],
        ["c.png", "x", "4503599627370497.0"],
    ]
    put_csv(tmp_path / "metadata.csv", [["file_name", "text", "seed"], *rows])
    dataset = read_dataset(tmp_path)
    assert [picture.settings["seed"] for picture in dataset.pictures] == [2**64 - 1, 2**52 + 1]
    (reason,) = dataset.left_out.values()
    assert "seed must be a whole number" in reason


def test_rate_is_a_number_or_a_fraction(tmp_path):
    rates = ["24", "12.5", "24.0", "24000/1001", "[24]"]
    put(tmp_path, *(f"{i}.png" for i in range(5)))
    rows = [[f"{i}.png", "x", rate] for i, rate in enumerate(rates)]
    put_csv(tmp_path / "metadata.csv", [["file_name", "text", "video.fps"], *rows])
    dataset = read_dataset(tmp_path)
    assert [picture.settings["video.fps"] for picture in dataset.pictures] == [24, 12.5, 24, "24000/1001"]
    (reason,) = dataset.left_out.values()
    assert "video.fps must be a whole number or a number or a text; got" in reason


def test_settings_compose_into_the_configuration(tmp_path):
    put(tmp_path, "a.png")
    row = {"file_name": "a.png", "text": "x", "seed": "3", "sampler.sigmas": "[1.0, 0.5]", "video.max_size": [640, 320]}
    put_lines(tmp_path / "metadata.jsonl", row | {"sampler.num_steps": 2, "region_feather": 0})
    given = [f"{key}={json.dumps(value)}" for key, value in only(read_dataset(tmp_path)).items()]
    config = compose_config(*given)
    assert (config.seed, config.sampler.sigmas, config.video.max_size) == (3, [1.0, 0.5], [640, 320])
    assert (config.image, config.prompt) == (str(tmp_path / "a.png"), "x")


def test_keys_are_those_of_the_command_without_groups_and_what_decides_no_pixel():
    groups = {key.rpartition(".")[0] for key in keys()} | {"cluster", "store", "model", "sam3"}
    apart = {key for key in keys() if key.startswith(("cluster.", "store.", "model.", "sam3.")) or key in groups}
    assert set(KEYS) == set(keys()) - apart - {"plan_only", "metrics", "preview", "dino_path"}


@pytest.mark.parametrize("column", ["file_name", "image_file_name", "picture_file_name"])
def test_picture_may_be_in_any_one_column_of_file_names(tmp_path, column):
    put(tmp_path, "a.png")
    put_lines(tmp_path / "metadata.jsonl", {column: "a.png", "prompt": "x"})
    assert only(read_dataset(tmp_path)) == {"image": str(tmp_path / "a.png"), "prompt": "x"}


def test_file_name_and_text_go_before_other_columns_for_the_same(tmp_path):
    put(tmp_path, "a.png", "b.png")
    put_lines(tmp_path / "metadata.jsonl", {"image": "b.png", "prompt": "short", "file_name": "a.png", "text": "long"})
    dataset = read_dataset(tmp_path)
    assert only(dataset) == {"image": str(tmp_path / "a.png"), "prompt": "long"}
    assert dataset.notes == ("columns that set nothing are left aside: image, prompt",)


def test_masks_of_regions_are_relative_to_the_metadata(tmp_path):
    put(tmp_path, "train/a.png", "train/masks/m.png")
    regions = [{"prompt": "w", "mask": "masks/m.png"}, {"prompt": "v", "box": [0, 0, 1, 0.5]}]
    (tmp_path / "train" / "r.yaml").write_text("[]")
    header = ["file_name", "text", "regions"]
    rows = [["a.png", "x", json.dumps(regions)], ["a.png", "x", "r.yaml"], ["a.png", "x", "[{"]]
    put_csv(tmp_path / "train" / "metadata.csv", [header, *rows])
    dataset = read_dataset(tmp_path)
    first, second = (picture.settings["regions"] for picture in dataset.pictures)
    assert first == [regions[0] | {"mask": str(tmp_path / "train" / "masks" / "m.png")}, regions[1]]
    assert second == str(tmp_path / "train" / "r.yaml")
    (reason,) = dataset.left_out.values()
    assert "regions" in reason and "[{" in reason


def test_bad_rows_are_left_out_by_line_and_the_others_stay(tmp_path):
    put(tmp_path / "data", "a.png", "b.png", "cut.png")
    put(tmp_path, "outside.png")
    data = tmp_path / "data"
    (data / "notes.png").write_text("no picture")
    (data / "cut.png").write_bytes((data / "cut.png").read_bytes()[:60])
    good = {"file_name": "a.png", "text": "x"}
    bad = {
        "missing.png": {"file_name": "missing.png", "text": "x"},
        "notes.png": {"file_name": "notes.png", "text": "x"},
        "cut.png": {"file_name": "cut.png", "text": "x"},
        "../outside.png": {"file_name": "../outside.png", "text": "x"},
        "/etc/passwd": {"file_name": "/etc/passwd", "text": "x"},
        "a.png": good,
        "b.png": {"file_name": "b.png", "seed": 1},
        "seed": good | {"seed": "seven"},
        "true": good | {"seed": True},
        "mode": good | {"region_mode": "mix"},
        "map": good | {"fusion.activity_map": "none.png"},
        "number": {"file_name": 5, "text": "x"},
        "no file": {"text": "x"},
        "brace": '{"file_name": "a.png"',
        "list": "[1]",
        "null": "null",
    }
    reasons = (
        "no such file", "not an image", "cannot be decoded", "inside", "inside", "the same as metadata.jsonl line 1",
        "text must be given", "seed must be a whole number", "whole number", "one of blend, dominant",
        "fusion.activity_map: no such file", "image must be a text", "file_name must be given; its columns are text",
        "not JSON", "not an object", "not an object",
    )  # fmt: skip
    put_lines(data / "metadata.jsonl", good, *bad.values(), good | {"text": "y"}, good | {"seed": 1})
    dataset = read_dataset(data)
    assert [picture.name for picture in dataset.pictures][0] == "a" and len(dataset.pictures) == 3
    assert len(dataset.left_out) == len(bad)
    for line, (row, reason, text) in enumerate(zip(dataset.left_out, dataset.left_out.values(), reasons), 2):
        assert row.startswith(f"metadata.jsonl line {line}") and text in reason and "\n" not in reason, (row, reason)
    assert "metadata.jsonl line 2 (missing.png)" in dataset.left_out


def test_csv_rows_are_told_by_the_line_they_begin_on(tmp_path):
    put(tmp_path, "a.png")
    (tmp_path / "metadata.csv").write_text('file_name, text\na.png,"one\ntwo"\n\nno.png,x\na.png,x,of commas\nno.png\n')
    dataset = read_dataset(tmp_path)
    assert only(dataset)["prompt"] == "one\ntwo"
    assert list(dataset.left_out) == [f"metadata.csv line {row}" for row in ("5 (no.png)", "6 (a.png)", "7 (no.png)")]
    assert "more fields" in dataset.left_out["metadata.csv line 6 (a.png)"]


def test_links_of_a_hubs_cache_are_inside(tmp_path):
    put(tmp_path, "blobs/0a1b.png")
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "a.png").symlink_to("../blobs/0a1b.png")
    put_lines(tmp_path / "snapshot" / "metadata.jsonl", {"file_name": "a.png", "text": "x"})
    assert only(read_dataset(tmp_path / "snapshot"))["image"] == str(tmp_path / "snapshot" / "a.png")


@pytest.mark.parametrize(
    "files, says",
    [
        ({}, "Check the path"),
        ({"notes.txt": b"", ".hidden.png": b""}, "Check the path"),
        ({"data/train-00000.parquet": b"PAR1"}, "Parquet is not read"),
        ({"metadata.parquet": b"PAR1"}, "Parquet is not read"),
        ({"one/two.png": b""}, "further down"),
        ({"metadata.csv": b"file_name,text\n", "metadata.jsonl": b""}, "described in one file"),
        ({"metadata.csv": b"file_name,text\n"}, "there is no row"),
        ({"metadata.csv": b""}, "there is no row"),
        ({"metadata.csv": "file_name,text\na.png,été\n".encode("latin-1")}, "UTF-8"),
        ({"metadata.csv": b"file_name;text\na.png;x\nb.png;x\n"}, "metadata.csv line 2: file_name must be given"),
        ({"a.png": b"broken"}, "a.png: image:"),
    ],
)
def test_folder_that_gives_nothing_is_refused_with_what_to_do(tmp_path, files, says):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match="^dataset") as error:
        read_dataset(tmp_path)
    assert says in str(error.value)


def test_path_that_is_no_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="^dataset must be a folder; got .*none"):
        read_dataset(tmp_path / "none")


def test_texts_beside_pictures_in_natural_order(tmp_path):
    put(tmp_path, "p10.png", "p2.jpg", "P1.PNG", "p2_activity.png", "own_activity.png", "q_activity.png", "q.png")
    put(tmp_path, ".p3.png", "sub/p4.png")
    for name, text in {"p10": "ten\n", "p2": "\ufefftwo,\nand more", "q_activity": "a volcano", "readme": "-"}.items():
        (tmp_path / f"{name}.txt").write_text(text)
    (tmp_path / "P1.txt").write_bytes(b"\xff\xfe")
    (tmp_path / "q.svg").write_text("<svg/>")
    dataset = read_dataset(tmp_path)
    assert list(prompts(dataset).items()) == [
        ("own_activity.png", ""), ("p2.jpg", "two,\nand more"), ("p10.png", "ten"), ("q.png", ""),
        ("q_activity.png", "a volcano"),
    ]  # fmt: skip
    maps = {p.name: p.settings["fusion.activity_map"] for p in dataset.pictures if "fusion.activity_map" in p.settings}
    assert maps == {"p2": str(tmp_path / "p2_activity.png")}
    assert list(dataset.left_out) == ["P1.PNG"] and "P1.txt is not UTF-8" in dataset.left_out["P1.PNG"]
    assert dataset.notes == ("2 of 5 pictures have no text: their prompts are empty",)


def make_suite(root: Path, *, with_list: bool) -> Path:
    """The image suite as VBench's repository has it; three of the list's pictures, one of them not downloaded."""
    for shape in ("1-1", "16-9"):
        put(root / "vbench2_beta_i2v" / "data" / "crop" / shape, "a dog runs.jpg", "two eggs, fried.jpg")
    names = ("a dog runs", "two eggs, fried", "reeds")
    entries = [
        {"prompt_en": f"{name}{suffix}", "dimension": [dimension], "image_type": "animal", "image_name": f"{name}.jpg"}
        for name in names
        for suffix, dimension in ((" in the list", "i2v_subject"), (", camera pans left", "camera_motion"))
    ]
    del entries[1]["image_name"]  # as in one of its published states
    if with_list:
        (root / "vbench2_beta_i2v" / "vbench2_i2v_full_info.json").write_text(json.dumps(entries))
    return root / "vbench2_beta_i2v" / "data" / "crop"


@pytest.mark.parametrize("part, noted", [(".", True), ("vbench2_beta_i2v/data", True), ("16-9", False), ("1-1", False)])
def test_image_suite_takes_prompts_from_its_list(tmp_path, part, noted):
    crop = make_suite(tmp_path, with_list=True)
    dataset = read_dataset(crop / part if "-" in part else tmp_path / part)
    shape = part if "-" in part else "16-9"
    assert [picture.settings for picture in dataset.pictures] == [
        {"image": str(crop / shape / f"{name}.jpg"), "prompt": f"{name} in the list"}
        for name in ("a dog runs", "two eggs, fried")
    ]
    assert [picture.name for picture in dataset.pictures] == ["a_dog_runs", "two_eggs__fried"]
    assert any("crop/16-9" in note for note in dataset.notes) == noted
    assert dataset.notes[-1] == "1 of the 3 pictures in vbench2_i2v_full_info.json are not there"


def test_image_suite_without_list_takes_prompts_from_file_names(tmp_path):
    dataset = read_dataset(make_suite(tmp_path, with_list=False) / "16-9")
    assert list(prompts(dataset).values()) == ["a dog runs", "two eggs, fried"] and not dataset.notes


def test_image_suite_with_a_broken_list_is_refused(tmp_path):
    make_suite(tmp_path, with_list=False)
    (tmp_path / "vbench2_beta_i2v" / "vbench2_i2v_full_info.json").write_text('[{"prompt_en": "x"}]')
    with pytest.raises(InputError, match="^dataset: .*is not VBench-I2V's list"):
        read_dataset(tmp_path)


def test_names_are_fit_for_folders_and_never_change_when_rows_follow():
    paths = ["a b.png", "A_B.jpg", "a_b_2.png", "train/a=b.png", ".hid/x.png", "report.png", "Store.tif", "壁画.png"]
    paths += [
        "क्षि.png",
        "e\u0301.png",
        "É.png",
        "x" * 100 + ".png",
        "x" * 100 + "y.png",
        "𠀀" * 100,
        "..",
        "",
        "v1.2.png",
    ]
    names = list(name_pictures(paths))
    assert names[:8] == ["a_b", "A_B_2", "a_b_2_2", "train_a_b", "hid_x", "report", "Store", "壁画"]
    assert names[8:13] == ["क्षि", "é", "É_2", "x" * 80, "x" * 78 + "_2"]
    assert names[14:] == ["picture", "picture_2", "v1.2"]
    assert len({name.casefold() for name in names}) == len(names)
    for name in names:
        assert 0 < len(name) <= MAX_NAME and len(name.encode()) < 255 and name[0] != "." and "/" not in name
    for count in range(len(paths)):
        assert list(name_pictures(paths[:count])) == names[:count]


def test_mended_row_leaves_the_names_of_others(tmp_path):
    put(tmp_path, "A.png")
    put_lines(tmp_path / "metadata.jsonl", *({"file_name": name, "text": "x"} for name in ("a.png", "A.png")))
    (before,) = read_dataset(tmp_path).pictures
    put(tmp_path, "a.png")
    assert read_dataset(tmp_path).pictures[1] == before
