"""Files of a group: every name can be chosen, and a text is what was written."""

from pathlib import Path

import hydra
import pytest
from test_overrides import points

from fresco_dist.config import InputError
from fresco_dist.settings.arguments import read_arguments
from fresco_dist.settings.files import read_yaml
from fresco_dist.settings.schema import CONFIG_FOLDER, checked_config, plain_values, register

NAMES = ["10", "2024_05_01", "true", "null", "1e3", "mural (1)", "壁画", "a=b", "a,b", "it's", "~x", "a.b", "a 'b\" c"]
NAMES += ["[a]", "x: y", "${x}", "glob(x)", "C:\\(1)", "-m", "@a", "007", "1.10", "No"]


@pytest.fixture
def compose(tmp_path):
    """What a run has, chosen by these overrides among the files of a folder."""

    def made(folder: Path, *overrides: str) -> dict:
        register()
        with hydra.initialize_config_dir(CONFIG_FOLDER, version_base="1.3"):
            searched = f"hydra.searchpath=['file://{folder}']"
            return plain_values(checked_config(hydra.compose("config", [searched, *overrides]))[0])

    return made


def write(folder: Path, name: str, text: str, encoding: str = "utf-8") -> Path:
    """A file of the group `picture`."""
    (folder / "picture").mkdir(exist_ok=True)
    (folder / "picture" / f"{name}.yaml").write_text(text, encoding=encoding)
    return folder


@pytest.mark.parametrize("typed", ["+picture=glob(*)", "+picture=glob([*])", "+picture=glob(*,exclude=z*)"])
def test_files_of_all_names_become_points(tmp_path, typed):
    for name in [*NAMES, "._10"]:  # some systems leave such files beside others
        write(tmp_path, name, "")
    _, (override,) = read_arguments(["--config-dir", str(tmp_path), "-m", typed])
    assert [name for (name,) in points(override)] == sorted(NAMES)


def test_file_of_any_name_can_be_chosen_alone(tmp_path, compose):
    for i, name in enumerate(NAMES):
        quotes = (
            '"' if name in ("null", "a,b", "[a]", "C:\\(1)", "glob(x)", "${x}") else ""
        )  # what these names may also mean
        _, (override,) = read_arguments([f"+picture={quotes}{name}{quotes}"])
        if name != "${x}":  # Hydra resolves names
            assert compose(write(tmp_path, name, f"prompt: text {i}"), override)["prompt"] == f"text {i}"


@pytest.mark.parametrize(
    "written, text",
    [
        ("yes", "yes"), ("5", "5"), ("1_000", "1_000"), ("1.10", "1.10"), ("12:30", "12:30"), ("1e3", "1e3"),
        ("2024-05-01", "2024-05-01"), ("0x10", "0x10"), (".inf", ".inf"),
        ('"yes"', "yes"), ("'${5}'", "${5}"), ("a ${x} b", "a ${x} b"),
        ("${", "${"), ("null", None), ("", None), ("~", None),
        ("${negative_prompt}", "still"), ("|\n  a\n  b", "a\nb\n"),
        ("水", "水"), ("'it''s'", "it's"),
    ],
)  # fmt: skip
def test_file_text_is_what_was_written(tmp_path, compose, written, text):
    write(tmp_path, "a", f"negative_prompt: still\nseed: 1_000\nprompt: {written}\n")
    made = compose(tmp_path, "+picture=a")
    assert (made["prompt"], made["seed"]) == (text, 1000)


def test_file_texts_in_lists_and_groups_are_what_was_written(tmp_path, compose):
    write(tmp_path, "a", "sam3: {prompts: [yes, 1_0]}\nmodel: {loras: [{path: 1.10, weight: 1_0}]}\n")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("path: 2024_05\nbackbone: wan\n")
    made = compose(tmp_path, "+picture=a", "model=mine")
    assert made["sam3"]["prompts"] == ["yes", "1_0"] and made["model"]["path"] == "2024_05"
    assert made["model"]["loras"] == [{"path": "1.10", "weight": 10.0, "expert": None}]


@pytest.mark.parametrize("header", ["# @package _global_\n", "", "# a picture\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_file_of_pictures_needs_no_header(tmp_path, compose, header, encoding):
    write(tmp_path, "a", f"{header}prompt: é\n", encoding)
    assert compose(tmp_path, "+picture=a")["prompt"] == "é"


@pytest.mark.parametrize(
    "content", [b"prompt: [a\n", "prompt: é\n".encode("latin-1"), b"prompt: a\nprompt: b\n", b"\0"]
)
def test_file_that_is_no_yaml_is_refused_by_name(tmp_path, compose, content):
    write(tmp_path, "a", "")
    (tmp_path / "picture" / "a.yaml").write_bytes(content)
    with pytest.raises(InputError, match=r"picture/a.yaml cannot be read as YAML: [^\n]*$"):
        compose(tmp_path, "+picture=a")


def test_file_of_regions_has_texts_as_written(tmp_path, compose):
    regions = (
        write(tmp_path, "r", "[{prompt: 'yes ${5}', box: [0, 0, 1, 1]}, {prompt: 1_0, box: [0, 0, 1, 1]}]")
        / "picture/r.yaml"
    )
    assert [region["prompt"] for region in read_yaml(regions, "regions")] == ["yes ${5}", "1_0"]
    assert [region["prompt"] for region in compose(tmp_path, f"regions={regions}")["regions"]] == ["yes ${5}", "1_0"]
