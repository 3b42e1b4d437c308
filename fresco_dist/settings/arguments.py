"""The arguments of a command as they are typed, made to what Hydra takes: its flags, then overrides.

Owns what is said of arguments that are neither. What becomes of a value: settings/overrides.py.
"""

import os
import re
from collections.abc import Sequence
from difflib import get_close_matches

from fresco_dist.config import InputError
from fresco_dist.settings.keys import keys, kinds
from fresco_dist.settings.overrides import command, for_hydra, is_text
from fresco_dist.settings.schema import CONFIG_FOLDER

WITH_VALUE = (  # Hydra's flags
    "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd", "--package", "-p", "--cfg", "-c",
    "--experimental-rerun",
)  # fmt: skip
ALONE = (
    "--help", "-h", "--hydra-help", "--version", "--resolve", "--run", "-r", "--multirun", "-m", "--shell-completion",
    "-sc", "--info", "-i",
)  # fmt: skip
INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")  # after --info; the first if none
MULTIRUN = ("-m", "--multirun")
FILE = re.compile(r"\S*/\S*|.*\.[A-Za-z0-9]{2,5}", re.DOTALL)


def read_arguments(argv: Sequence[str], *, picture_key: str = "image") -> tuple[list[str], list[str]]:
    """Hydra's flags, and the overrides as Hydra takes them.

    A file's name alone is taken to be meant for `picture_key`. Raises InputError for what is no override, no flag of
    Hydra's, or ambiguous, with the very argument that would do.
    """
    flags, words = split_flags(argv)
    folders = [value for flag, value in zip(flags, flags[1:]) if flag in ("--config-dir", "-cd")]
    sweeps = asks_for_sweep(flags, words)
    for i, word in enumerate(words):
        if "=" not in word and not word.startswith("~"):
            raise InputError(f"{word}: an argument is KEY=VALUE. Did you mean {_meant(words, i, picture_key)}?")
    return flags, [for_hydra(word, sweeps=sweeps, groups=[*folders, CONFIG_FOLDER]) for word in words]


def split_flags(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Hydra's flags, those with a value before it, and all other arguments; raises InputError for flags of no one."""
    flags, others, words = [], [], list(argv)
    while words:
        word = words.pop(0)
        if not word.startswith("-"):
            others.append(word)
            continue
        name, is_joined, value = word.partition("=")
        near = [flag for flag in (*WITH_VALUE, *ALONE) if flag == name or len(name) > 2 and flag.startswith(name)]
        flag = name if name in near else near[0] if len(near) == 1 else None
        if flag is None:
            raise InputError(_of_option(name, value if is_joined else _value_in(words)))
        flags.append(flag)
        if flag in WITH_VALUE and not is_joined and not words:
            raise InputError(f"{flag} must be followed by a value. See --hydra-help.")
        if flag in ("--info", "-i") and not is_joined:
            flags.append(words.pop(0) if words and words[0] in INFO else INFO[0])
        elif flag in WITH_VALUE or is_joined:
            given = value if is_joined else words.pop(0)
            flags.append(os.path.expanduser(given) if flag in ("--config-dir", "-cd") else given)
    return flags, others


def asks_for_sweep(flags: Sequence[str], words: Sequence[str]) -> bool:
    """Whether these, see `split_flags`, are of a command that Hydra runs several times."""
    return any(flag in MULTIRUN for flag in flags) or any(word.lstrip("+") == "hydra.mode=MULTIRUN" for word in words)


def _value_in(words: Sequence[str]) -> str | None:
    """What comes after an option, if it is its value."""
    return words[0] if words and not words[0].startswith("-") and "=" not in words[0] else None


def _of_option(option: str, value: str | None) -> str:
    """What is said of an option that is none."""
    name = option.lstrip("-").replace("-", "_")
    by_end = {key.rpartition(".")[2]: key for key in reversed(keys())}
    near = get_close_matches(name, [*keys(), *by_end], n=1)
    if not near:
        return f"{option}: there is no such option. Settings are KEY=VALUE; options are in --hydra-help."
    key = by_end.get(near[0], near[0])
    meant = f"{key}=VALUE" if value is None else command(key, value)
    return f"{option}: there is no such option. Did you mean {meant}?"


def _meant(words: Sequence[str], i: int, picture_key: str) -> str:
    """What a word without = may be a part of."""
    before = words[i - 1] if i else ""
    following = words[i + 1 :]
    if words[i] in kinds():
        lone_sign = following[:1] == ["="]
        text = "".join(following[lone_sign : lone_sign + 1])
        text = text.removeprefix("=") if text.startswith("=") or "=" not in text else ""
        return command(words[i], text) if text else f"{words[i]}=VALUE"
    key, has_key, start = before.partition("=")
    is_file = FILE.fullmatch(words[i]) is not None
    has_picture = any(word.startswith(f"{picture_key}=") for word in words)
    if has_key and is_text(key.lstrip("+")) and (not start or has_picture or not is_file):
        end = next((j for j in range(i, len(words)) if "=" in words[j]), len(words))
        return command(key, " ".join([start, *words[i:end]]).strip())
    return command(picture_key if is_file else "prompt", words[i])
