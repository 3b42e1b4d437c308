"""Configuration files, by the names that groups have, in which the text of a key is what was written there.

YAML 1.1 reads `yes`, 1_000, 1.10 and 12:30 as a truth and numbers, and a text would come back from these otherwise.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.core_plugins.file_config_source import FileConfigSource as HydraFileConfigSource
from hydra._internal.sources_registry import SourcesRegistry
from hydra.plugins.config_source import ConfigLoadError, ConfigResult
from omegaconf import OmegaConf

from fresco_dist.config import InputError
from fresco_dist.settings.keys import kinds
from fresco_dist.settings.texts import unless_reference

STRING, NULL = "tag:yaml.org,2002:str", "tag:yaml.org,2002:null"
GLOBAL = "_global_"


class FileConfigSource(HydraFileConfigSource):
    """Hydra's, which knows of no types when it reads a file. Of the same name, so that it takes that one's place."""

    def load_config(self, config_path: str) -> ConfigResult:
        """A file of a group that is no key, as those of pictures are, needs no `# @package _global_`.

        Raises InputError if it is no YAML.
        """
        path = Path(self.path, self._normalize_file_name(config_path))
        if not path.exists():
            raise ConfigLoadError(f"Config not found : {path}")
        try:
            text = path.read_text(encoding="utf-8-sig")
            header, node = self._get_header_dict(text), yaml.compose(text, yaml.SafeLoader)
            keep_texts(node, "")
            package = os.path.dirname(config_path).replace("/", ".")
            keep_texts(node, package)
            config = OmegaConf.create("" if node is None else yaml.serialize(node))
        except (OSError, ValueError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{path} cannot be read as YAML: {reason}. Save it as UTF-8, texts in quotes.") from None
        holds_keys = not config or bool(kinds().keys() & set(config))
        if header["package"] is None and holds_keys and package.partition(".")[0] not in ("", "hydra", *kinds()):
            header["package"] = GLOBAL
        source = f"{self.scheme()}://{self.path}"
        return ConfigResult(provider=self.provider, path=source, config=config, header=header)


def use_files() -> None:
    """Have Hydra read its files so."""
    SourcesRegistry.instance().types[FileConfigSource.scheme()] = FileConfigSource


def keep_texts(node: yaml.Node | None, key: str, *, resolves: bool = True) -> None:
    """Put in quotes what a text key has without; `key` is that of the node.

    `resolves`: it will be searched for ${...}, which stay text unless they name something.
    """
    if isinstance(node, yaml.SequenceNode):
        for entry in node.value:
            keep_texts(entry, f"{key}[]", resolves=resolves)
    elif isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            keep_texts(value, f"{key}.{name.value}".lstrip("."), resolves=resolves)
    elif isinstance(node, yaml.ScalarNode) and kinds().get(key) and node.tag != NULL:
        node.tag, node.style = STRING, node.style or '"'
        if resolves:
            node.value = unless_reference(node.value)


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
