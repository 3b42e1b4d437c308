"""What Hydra and OmegaConf complain of, in the words of our own checks."""

import re
from difflib import get_close_matches

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from fresco_dist.config import InputError
from fresco_dist.settings.keys import keys
from fresco_dist.settings.overrides import makes_sweep

NO_ENTRY = "is not a subclass of "  # what OmegaConf says of an entry that is no dict
NO_LIST = ("is not a ListConfig", "Cannot merge DictConfig with ListConfig")  # what OmegaConf says then
SWEEP = re.compile(r"(?:Sweep parameters|Ambiguous value for argument) '(.*?)=(.*?)'(?: requires|\n1\. )", re.DOTALL)
QUOTING = """A text with commas or brackets needs quotes inside quotes: 'KEY="TEXT"'; a list is KEY=[A,B]."""


def in_words(error: Exception) -> str:
    """An error in one line."""
    is_input = isinstance(error, (InputError, HydraException, OmegaConfBaseException))
    return " ".join((explain(error) if is_input else str(error)).split())


def explain(error: Exception) -> str:
    """What Hydra and OmegaConf complain of, said as our own checks say it: key, value, what is allowed."""
    if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        return f"{group} must be one of {', '.join(error.options)}; got {name}."
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    if isinstance(cause, (ConfigAttributeError, ConfigKeyError)):
        near = _near(cause.full_key)
        return f"{cause.full_key}: there is no such key." + (f" Did you mean {' or '.join(near)}?" if near else "")
    if isinstance(cause, MissingMandatoryValue):
        key = str(cause.full_key).partition("[")[0]  # of a list, all entries are given together
        return f"{key} must be given: it has no default here. Add {key}=VALUE."
    text = str(error)
    if isinstance(cause, OmegaConfBaseException):
        wrapped = text.removeprefix("Error merging override ")
        override = error.full_key if isinstance(error, OmegaConfBaseException) else wrapped
        if any(part in str(cause) for part in NO_LIST):
            key, _, value = override.partition("=")
            return f"{key} must be a list, {key}=[A,B]; got {value or 'something else'}."
        if NO_ENTRY in str(cause):
            key = override.partition("=")[0]
            if inner := [name for name in keys() if name.startswith(f"{key}.")]:
                return f"{key} holds keys of its own: {', '.join(inner)}. Write {inner[0]}=VALUE."
            return f"{key}: each entry must be {{path: FILE}} or the like. Write {key}=[{{path: FILE}}]."
        return f"{override}: {str(cause).splitlines()[0].rstrip('.')}."
    if isinstance(error, OverrideParseException):
        hint = f" {QUOTING}" if "=" in error.override else ""
        return f"{error.override}: {text.splitlines()[0]}.{hint}"
    if sweep := SWEEP.match(text):
        return makes_sweep(*sweep.groups())
    return text.partition("Config search path")[0]


def _near(key: str) -> list[str]:
    """Keys that may have been meant: those that end so, or else the one that is spelt most alike."""
    return [name for name in keys() if name.endswith(f".{key}")] or get_close_matches(key, keys(), n=1)
