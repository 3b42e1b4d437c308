"""What is written for people: links lead somewhere, commands name what there is, and every key is explained."""

import re
import shlex
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

import fresco_dist
from fresco_dist.settings.keys import keys

REPOSITORY = Path(__file__).parents[1]
FOLDERS = ("conf", "launch", "benchmarks", "fresco_dist", "tests")
PAGES = sorted([*REPOSITORY.glob("*.md"), *(page for name in FOLDERS for page in (REPOSITORY / name).rglob("*.md"))])
NAMES = [str(page.relative_to(REPOSITORY)) for page in PAGES]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
CONF = REPOSITORY / "conf"
GROUPS = {folder.name for folder in CONF.iterdir() if folder.is_dir() and folder.name != "__pycache__"}
OTHERS = {"dataset", "compare", "reference", "picture"}  # of the evaluation; a folder of the user's
YOURS = {"NAME", "fading", "mine"}  # files of the user's that pages speak of
INNER = {"fusion.method", "model.backbone"}  # which groups set, not people


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return FENCE.sub("", page.read_text())


def spans(page: Path) -> list[str]:
    """Code within sentences and tables, in one line each."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(page))]


def commands(page: Path) -> Iterator[list[str]]:
    """Words of the commands in a page's blocks of code, as a shell splits them."""
    for language, block in FENCE.findall(page.read_text()):
        for line in block.replace("\\\n", " ").splitlines():
            if not language and re.search(r"\b(python|pip|pytest|sbatch) |\.sh ", line):
                yield shlex.split(line, comments=True)


def words(page: Path) -> list[str]:
    return [word for command in commands(page) for word in command] + [w for s in spans(page) for w in s.split()]


def anchors(page: Path) -> list[str]:
    """Of a page's headings, as GitHub names them."""
    headings = re.findall(r"^#+ +(.*)$", prose(page), re.M)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


def explained(page: str) -> set[str]:
    """Names in the first column of the table of keys."""
    table = (REPOSITORY / page).read_text().partition("| key | default | meaning |\n")[2].partition("\n\n")[0]
    return {name for line in table.splitlines() for name in re.findall(r"`([^`]+)`", line.split("|")[1])}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_to_files_and_headings(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", prose(page))):
        if re.match(r"https?://", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists() and file.is_relative_to(REPOSITORY), target
        assert not anchor or anchors(file).count(anchor) == 1, target


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_lines_are_at_most_120_wide(page):
    lines = [line for line in prose(page).splitlines() if not line.startswith(("|", "!["))]
    assert [line for line in lines if len(line) > 120] == []


def test_readme_is_read_in_five_minutes():
    assert len((REPOSITORY / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_name_modules_that_exist(page):
    for command in [*commands(page), *(span.split() for span in spans(page))]:
        for before, word in zip(["", *command], command):
            if before == "-m" and word.startswith("fresco_dist"):
                assert find_spec(word), word
                assert find_spec(word).submodule_search_locations is None or find_spec(f"{word}.__main__"), word


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_python_names_what_the_package_offers(page):
    for language, block in FENCE.findall(page.read_text()):
        if language == "python":
            compile(block, page.name, "exec")
            assert set(re.findall(r"\bfresco_dist\.([A-Z]\w*)", block)) <= set(fresco_dist.__all__)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_files_of_code_that_are_named_exist(page):
    roots = [REPOSITORY / root for root in (".", "tests", "fresco_dist", "fresco_dist/method")]
    for word in words(page):
        if re.fullmatch(r"[a-z_0-9]+/[\w/]+\.(py|sh|sbatch)", word) and Path(word).stem not in YOURS:
            assert any((root / word).is_file() for root in roots), word


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_overrides_name_keys_and_choices_that_exist(page):
    for word in words(page):
        match = re.match(r"\+?([a-z][a-z_0-9./]*)=(.*)", word, re.S)
        if not match or re.match(r"hydra[./]", match[1]):
            continue
        key, value = match[1], match[2].strip('"')
        assert key in {*keys(), *GROUPS, *OTHERS}, word
        folder = CONF / {"compare": "comparison"}.get(key, key)
        if key in {"compare", *GROUPS} and set(value.split(",")).isdisjoint(YOURS):
            assert all((folder / f"{choice}.yaml").is_file() for choice in value.split(",") if choice), word


def test_table_of_keys_has_every_key_and_no_other():
    sections = {key.rpartition(".")[0] for key in keys()} - {"model", "fusion"}
    assert explained("conf/README.md") == set(keys()) - sections - INNER


@pytest.mark.parametrize(
    ("group", "page"),
    [
        ("model", "conf/README.md"),
        ("fusion", "conf/README.md"),
        ("cluster", "launch/README.md"),
        ("comparison", "fresco_dist/evaluate/README.md"),
    ],
)
def test_every_choice_of_a_group_is_in_its_readme(group, page):
    found = set(spans(REPOSITORY / page))
    for file in (CONF / group).glob("*.yaml"):
        prefix, _, ending = file.stem.rpartition("_")
        assert file.stem in found or (f"_{ending}" in found and any(span.startswith(prefix) for span in found)), file
