"""Configuration files, by the names that groups have, in which the text of a key is what was written there.

YAML 1.1 reads `yes`, 1_000, 1.10 and 12:30 as a truth and numbers, and a text would come back from these otherwise.
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.core_plugins.file_config_source import FileConfigSource as HydraFileConfigSource
from hydra._internal.sources_registry import SourcesRegistry
from hydra.plugins.config_source import ConfigResult
from omegaconf import OmegaConf

from fresco_dist.settings.keys import kinds
from fresco_dist.settings.texts import unless_reference

NULL = "tag:yaml.org,2002:null"


class FileConfigSource(HydraFileConfigSource):
    """Hydra's, which knows of no types when it reads a file. Of the same name, so that it takes that one's place."""

    def load_config(self, config_path: str) -> ConfigResult:
        """A file without keys of texts stays as Hydra has read it."""
        result = super().load_config(config_path)
        path = Path(self.path, self._normalize_file_name(config_path))
        node = yaml.compose(path.read_text(encoding="utf-8"), yaml.SafeLoader)
        package = os.path.dirname(config_path).replace("/", ".")
        found = keep_texts(node, "") | keep_texts(node, package)
        return replace(result, config=OmegaConf.create(yaml.serialize(node))) if found else result


def use_files() -> None:
    """Have Hydra read its files so."""
    SourcesRegistry.instance().types[FileConfigSource.scheme()] = FileConfigSource


def keep_texts(node: yaml.Node | None, key: str, *, resolves: bool = True) -> bool:
    """Put in quotes what a text key has without; `key` is that of the node. Whether there was any.

    `resolves`: it will be searched for ${...}, which stay text unless they name something.
    """
    if isinstance(node, yaml.SequenceNode):
        return any([keep_texts(entry, f"{key}[]", resolves=resolves) for entry in node.value])
    if isinstance(node, yaml.MappingNode):
        prefix = f"{key}." if key else ""
        pairs = node.value
        return any([keep_texts(value, f"{prefix}{name.value}", resolves=resolves) for name, value in pairs])
    if node is None or not kinds().get(key) or node.tag == NULL:
        return False
    node.style = node.style or '"'
    node.tag = "tag:yaml.org,2002:str"
    if resolves:
        node.value = unless_reference(node.value)
    return True


def read_yaml(path: Path, key: str) -> Any:
    """What a file holds that is the value of a key; raises what `open` and yaml raise, and ValueError."""
    loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
    node = loader.get_single_node()
    keep_texts(node, key, resolves=False)
    return None if node is None else loader.construct_document(node)


def names_in_group(group: str, folders: Sequence[str]) -> list[str]:
    """The files of a group, without their endings, as Hydra names them; hidden ones are nobody's choice."""
    files = (path for folder in folders for path in Path(folder, group).glob("*.yaml"))
    return sorted({path.stem for path in files if not path.name.startswith(".")})
