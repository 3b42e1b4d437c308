"""Configurations from Python values, in a program that may use Hydra for itself."""

from dataclasses import dataclass

import hydra
import pytest
from hydra import version
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra

from fresco_dist.config import InputError
from fresco_dist.settings.composing import compose_values


@dataclass
class Theirs:
    seed: int = 1


@pytest.fixture
def host(tmp_path, monkeypatch):
    """The configuration files of another program, whose group `db` has keys that ours has too."""
    monkeypatch.setitem(SourcesRegistry.instance().types, "file", FileConfigSource)
    monkeypatch.setitem(ConfigStore.instance().repo, "config_schema.yaml", None)
    ConfigStore.instance().store("config_schema", Theirs)
    (tmp_path / "db").mkdir()
    (tmp_path / "db" / "mysql.yaml").write_text("seed: 1\nimage: yes\n")
    (tmp_path / "config.yaml").write_text("defaults: [db: mysql, config_schema]\n")
    return str(tmp_path)


@pytest.mark.parametrize("values", [{"seed": 7}, {"seeed": 7}])
def test_hydra_of_the_program_is_as_it_was(host, values):
    """Also while it is in use, as in a function of `hydra.main`, and where what is asked for is refused."""
    with hydra.initialize_config_dir(host, version_base="1.2"):
        before, of_version = GlobalHydra.instance().hydra, version.getbase()
        first = hydra.compose("config")
        try:
            assert compose_values(values).seed == 7
        except InputError:
            assert "seeed" in values
        assert hydra.compose("config") == first == {"db": {"seed": 1, "image": True}, "seed": 1}
        assert GlobalHydra.instance().hydra is before and version.getbase() == of_version
    with hydra.initialize_config_dir(host, version_base="1.2"):
        assert hydra.compose("config") == first
    assert SourcesRegistry.instance().types["file"] is FileConfigSource
