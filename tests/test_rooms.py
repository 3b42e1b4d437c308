"""Folders, the contract of layers, what is installed and the picture in the package's README say the same."""

import configparser
import re
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "fresco_dist"


def setup_lines(section: str, key: str) -> list[str]:
    parser = configparser.ConfigParser()
    parser.read(REPOSITORY / "setup.cfg")
    return parser[section][key].split()


def rooms() -> set[str]:
    """Folders and files of the package that hold code."""
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    return folders | {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}


def test_contract_orders_every_room():
    layers = setup_lines("importlinter:contract:rooms", "layers")
    assert len(layers) == len(set(layers)) and set(layers) == rooms()


def test_every_folder_is_installed():
    folders = {path.parent.relative_to(REPOSITORY) for path in PACKAGE.rglob("__init__.py")}
    installed = set(setup_lines("options", "packages")) - {"fresco_dist.conf"}
    assert installed == {".".join(folder.parts) for folder in folders}


def test_folder_says_what_may_live_there_and_is_mirrored_by_tests():
    for room in rooms() - {"config", "launch"}:
        assert re.match(r'"""[A-Z]', (PACKAGE / room / "__init__.py").read_text()), room
        assert list((REPOSITORY / "tests" / room).glob("test_*.py")), room


def test_readme_shows_the_rooms_in_their_order():
    section = (PACKAGE / "README.md").read_text().partition("## Where to look")[2].partition("\n## ")[0]
    picture = section.split("```")[1]
    shown = re.findall(r"^(\w+)(?:/|\.py) +[^:\n]*:? ?(.*)$", picture, re.M)
    layers = setup_lines("importlinter:contract:rooms", "layers")
    assert [room for room, _ in shown] == layers
    for room, modules in shown:
        for module in re.findall(r"[a-z_]+", modules):
            assert (PACKAGE / room / f"{module}.py").exists() or (PACKAGE / room / module).is_dir(), (room, module)
