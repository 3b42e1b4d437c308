"""The command line: `python -m fresco_dist.launch`. The only module that sees argv, the environment and signals.

Turns a composed configuration into dataclasses, a run into an exit code, and what happens into lines for people.
Exit codes: 0 done; 2 the user's input is wrong, in one line; 1 anything else; 130 and 143 on SIGINT and SIGTERM.
"""

import os
import secrets
import signal
import sys
import traceback
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from rich.console import Console

import fresco_dist.conf
from fresco_dist.config import Config, InputError

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
}
CONFIG_FOLDER = str(Path(fresco_dist.conf.__file__).parent)


class Terminated(BaseException):
    """SIGTERM arrived."""


def _prepare_environment() -> None:
    """Nothing reaches out: no hub, no usage statistics, and a Ray of our own answers only to this run's token."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach main() instead of being printed by Hydra


def _terminate(*_: object) -> None:
    raise Terminated


@hydra.main(version_base="1.3", config_path=CONFIG_FOLDER, config_name="config")
def _run(cfg: DictConfig) -> None:
    config = OmegaConf.to_object(cfg)
    if config.cluster.address is None:  # a new token for every Ray started here; it is written nowhere
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    from fresco_dist.run import run  # torch, diffusers and ray load only when the command line is in order

    plain = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
    run(config, plain, Path(HydraConfig.get().runtime.output_dir), Console(stderr=False))


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    if "Could not override 'cluster'" in text:
        text += " Presets are added: +cluster=NAME."
    return f"error: {text}"


def main() -> int:
    """Run the command line; returns the exit code."""
    _prepare_environment()
    signal.signal(signal.SIGTERM, _terminate)
    ConfigStore.instance().store(name="config_schema", node=Config)
    try:
        _run()
    except (InputError, HydraException, OmegaConfBaseException) as error:
        print(_one_line(error), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Terminated:
        print("terminated", file=sys.stderr)
        return 143
    except Exception as error:
        from fresco_dist.executor import WorkerError

        if not isinstance(error, WorkerError):
            traceback.print_exc()
        print(_one_line(error), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
