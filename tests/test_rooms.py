"""Folders, the contract of layers, what is installed and the picture in the package's README say the same."""

import ast
import configparser
import re
import sys
from importlib.metadata import packages_distributions
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


def test_what_is_imported_is_declared_and_pinned():
    """By its own name, whatever else may bring it."""
    trees = [ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    imported = {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"fresco_dist"}
    of = packages_distributions()
    needed = {name.lower().replace("_", "-") for module in imported for name in of.get(module, [module])[:1]}
    declared = setup_lines("options", "install_requires")
    for extra in ("pictures", "notebook", "slurm", "xformers", "fp8"):
        declared += setup_lines("options.extras_require", extra)
    pins = re.findall(r"^[\w-]+(?===)", (REPOSITORY / "constraints.txt").read_text(), re.M)
    for lines in (declared, pins):
        assert needed <= {re.split("[=<>]", line.lower().replace("_", "-"))[0] for line in lines}
