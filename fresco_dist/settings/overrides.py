"""KEY=VALUE as it is typed, made to what Hydra's grammar reads as that.

A value that the grammar refuses is the text that was typed. So is one of a text key (settings/keys.py), or of a key
that nobody knows, that it would read as something else: a number, a truth, a list, a text without its spaces. What
Hydra gives a meaning keeps it: quotes around the whole, null, ${...} that names something, functions, a backslash
before one of \\()[]{}:=, and space, and with -m commas. Where a comma or a backslash could be the text's as well as
Hydra's, one line shows what to type. Reads the names of configuration files, and nothing else.
"""

import os
import re
import shlex
from collections.abc import Sequence

from hydra.core.override_parser.types import Glob, QuotedString

from fresco_dist.config import InputError
from fresco_dist.settings.files import names_in_group
from fresco_dist.settings.keys import CHOSEN, kinds, types_of_keys
from fresco_dist.settings.texts import ESCAPED, REFUSED, as_value, quoted, read, unless_reference

FOLDERS = ("hydra.run.dir", "hydra.sweep.dir")
HYDRA_TEXTS = (*FOLDERS, "hydra.sweep.subdir")
OVERRIDE = re.compile(r"(\+\+?|~)?([A-Za-z_$][\w$/.-]*(?:@[\w$.:-]*)?)=(.*)", re.ASCII | re.DOTALL)
CALL = re.compile(r"(choice|glob)\s*\((.*)\)", re.DOTALL)
FUNCTION = re.compile(r"[A-Za-z_][\w-]*\s*\(.*\)", re.DOTALL | re.ASCII)
QUOTED = re.compile(r""""(?:\\.|[^"\\])*"(?!\w)|'(?:\\.|[^'\\])*'(?!\w)""", re.DOTALL)
PROSE = re.compile(r",\s")
CLOSES = {"[": "]", "{": "}"}


def for_hydra(override: str, *, sweeps: bool = False, groups: Sequence[str] = ()) -> str:
    """An override as Hydra takes it. `sweeps`: with -m; `groups`: folders with configuration files in folders.

    Raises InputError for what is no override, or ambiguous, with the very argument that would do.
    """
    if override.startswith("~") and "=" not in override:
        return override
    match = OVERRIDE.fullmatch(override)
    if match is None:
        key = override.partition("=")[0].strip()
        near = command(key, override.partition("=")[2].strip()) if key in kinds() else "KEY=VALUE without spaces"
        raise InputError(f"{override}: {key or 'nothing'} cannot be a key. Write {near}.")
    key, value = match[2].partition("@")[0], match[3]
    if value == "" and key in FOLDERS:
        raise InputError(f"{key} must be a folder; got nothing. Write {key}=. for the one that you are in.")
    if value == "" or match[1] == "~":
        return override
    if match[1] is None and key not in CHOSEN and _is_choice(key, value, groups):  # as Hydra wants a new one
        override = f"+{override}"
    return override[: -len(value)] + _value(key, value, sweeps, groups)


def _is_choice(key: str, value: str, groups: Sequence[str]) -> bool:
    """Whether it names a file of a group, or cannot mean anything else."""
    names = names_in_group(key, groups)
    return value in names or (bool(names) and kinds().get(key, False) is None and value.replace("-", "").isalnum())


def command(key: str, text: str) -> str:
    """The argument that gives a key this very text, as it is typed into a shell."""
    must_quote = "," in text or ESCAPED.search(text) or read(text) is not REFUSED
    return shlex.quote(f"{key}={as_value(text) if is_text(key) and must_quote else text}")


def makes_sweep(key: str, value: str) -> str:
    """What is said of several values where one is due."""
    is_list = list in types_of_keys().get(key, ())
    hint = f"One text goes in quotes: {command(key, value)}." if is_text(key) else f"A list is {key}=[A,B]." * is_list
    return f"{key}={value}: this makes a sweep, with -m. {hint}".strip()


def is_text(key: str) -> bool:
    """Whether a key holds a text, or is unknown, or is the choice of a file."""
    return key in HYDRA_TEXTS if key.startswith(("hydra.", "hydra/")) else kinds().get(key) is not False


def _value(key: str, value: str, sweeps: bool, groups: Sequence[str]) -> str:
    if key in FOLDERS:
        found = read(value)
        text = found.text if isinstance(found, QuotedString) else value
        home = os.path.expanduser(text)
        return quoted(home) if home != text else _leaf(key, value)
    call = CALL.fullmatch(value)
    found = call and _call(key, call, sweeps, groups)
    if found:
        return found
    parts = [part.strip() for part in split(value)]
    if len(parts) == 1 or not all(parts) or key in HYDRA_TEXTS:
        return _element(key, value)
    if kinds().get(key, not sweeps) and PROSE.search(value) and not all(map(QUOTED.fullmatch, parts)):
        if not sweeps:
            return quoted(unless_reference(value))
        several = shlex.quote(f"{key}={','.join(parts)}")
        raise InputError(
            f"{key}: with -m a comma and a space are ambiguous. One text: {command(key, value)}; "
            f"{len(parts)} values: {several}."
        )
    if sweeps:
        return ",".join(_element(key, part) for part in parts)
    if is_text(key):
        raise InputError(makes_sweep(key, value))
    return value


def _call(key: str, call: re.Match, sweeps: bool, groups: Sequence[str]) -> str | None:
    """The values of a `choice`, and the files that a `glob` finds, with commas; None: they are no matter of texts.

    Hydra takes the quotes off what is between parentheses, and reads names like 10 and a=b as it reads values.
    """
    if not sweeps or not is_text(key):
        return None
    entries = ",".join(_element(key, part.strip()) for part in split(call[2]))
    if call[1] == "choice":
        return entries
    given = read(call[0])
    found = given if isinstance(given, Glob) else read(f"glob({entries})")
    if not isinstance(found, Glob):
        return None
    if kinds().get(key):
        raise InputError(f"{key} takes no glob, which chooses among configuration files. Write {key}=A,B.")
    names = found.filter(names_in_group(key, groups))
    if not names:
        folders = " or ".join(f"{folder}/{key}" for folder in groups)
        raise InputError(f"{key} must be a choice of files NAME.yaml in {folders}; got {call[0]}, which fits none.")
    return ",".join(map(as_value, names))


def split(text: str, separator: str = ",") -> list[str]:
    """The parts between commas, other than those in quotes, in brackets that close, and after a backslash."""
    for heeds_brackets in (True, False):
        parts, depth, start, i, may_quote, is_balanced = [], 0, 0, 0, True, True
        while i < len(text):
            quote = QUOTED.match(text, i) if may_quote else None
            if quote:
                i, may_quote = quote.end(), False
                continue
            letter = text[i]
            if letter == "\\":
                i += 2
                continue
            depth += (letter in "([{") - (letter in ")]}")
            is_balanced = is_balanced and depth >= 0
            if letter == separator and (depth == 0 or not heeds_brackets):
                parts.append(text[start:i])
                start = i + 1
            may_quote = letter.isspace() or letter in "([{,:"
            i += 1
        if is_balanced and depth == 0:
            break
    return [*parts, text[start:]]


def _element(key: str, text: str) -> str:
    """One value of those between commas."""
    holds = kinds().get(key) is not True or f"{key}[]" in kinds()
    if holds and text[:1] in CLOSES and text.endswith(CLOSES[text[:1]]):
        return _container(key, text)
    return _leaf(key, text)


def _container(key: str, text: str) -> str:
    """A list or what has names, its texts in quotes where they need some; raises InputError if it is none."""
    inner, entries = text[1:-1].strip(), []
    for part in split(inner) if inner else []:
        if text[0] == "[":
            entries.append(_element(f"{key}[]", part.strip()))
            continue
        name, _, value = part.partition(":")
        name = name.strip().strip("\"'")  # as JSON has it
        entries.append(f"{name}: {_element(f'{key}.{name}', value.strip())}")
    made = f"{text[0]}{', '.join(entries)}{text[-1]}"
    if read(made) is REFUSED:
        raise InputError(
            f'{key.partition("[")[0]}: {text} cannot be read. Put its texts in quotes: ["A, B",{{path: "C (1)"}}].'
        )
    return made if re.sub(r"\s", "", made) != re.sub(r"\s", "", text) else text


def _leaf(key: str, text: str) -> str:
    """A value in which commas and brackets mean nothing."""
    if text == "???" and kinds().get(key):
        raise InputError(f"{key}=???: three question marks alone stand for what is not given. Write another text.")
    found = read(text)
    if found is REFUSED:
        if ESCAPED.search(text):
            reason = "a backslash before one of \\()[]{}:=, and space is taken away, and the rest cannot be read"
            raise InputError(f"{key}={text}: {reason}. As it is, it goes in quotes: {command(key, text)}.")
        return quoted(unless_reference(text) if is_text(key) else text)
    if not is_text(key) or text.lower() == "null" or FUNCTION.fullmatch(text):
        return text
    is_as_meant = isinstance(found, QuotedString) or isinstance(found, str) and ESCAPED.search(text)
    meant = (found.text if isinstance(found, QuotedString) else found) if is_as_meant else text
    kept = meant if key in HYDRA_TEXTS else unless_reference(meant)
    return text if kept == meant and (is_as_meant or found == text) else quoted(kept)
