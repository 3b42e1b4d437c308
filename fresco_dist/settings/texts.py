"""A text that stays as it was written, whatever reads it: OmegaConf, which finds ${...} in it, and Hydra's grammar.

Hydra's grammar is https://hydra.cc/docs/advanced/override_grammar/basic.
"""

import re
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import GrammarParseError

from fresco_dist.settings.keys import kinds

ESCAPED = re.compile(r"\\[\\()\[\]{}:=, \t]")  # what the grammar takes a backslash away from
MARK = re.compile(r"(\\*)\$\{")
REFERENCE = re.compile(r"(?<!\\)(?:\\\\)*\$\{\s*([\w./-]*)\s*(:?)")
RESOLVERS = ("now", "hydra", "python_version")  # that Hydra adds when it starts
REFUSED = object()

_parser = OverridesParser.create()


def read(value: str) -> Any:
    """What Hydra's grammar makes of the value of an override; REFUSED if it is none."""
    try:
        return _parser.parse_override(f"key={value}")._value
    except HydraException:
        return REFUSED


def quoted(text: str) -> str:
    """The value of an override that is this text in any case."""
    return QuotedString(text, Quote.double).with_quotes()


def as_value(text: str) -> str:
    """The same, without quotes where these say nothing."""
    return text if read(text) == text and not ESCAPED.search(text) else quoted(text)


def literal(text: str) -> str:
    """The same for OmegaConf, which then finds nothing in it to resolve."""
    return MARK.sub(lambda mark: rf"{mark[1] * 2}\${{", text)


def unless_reference(text: str) -> str:
    """The same, literal unless each ${...} in it names a key or a resolver that there is."""
    names = REFERENCE.findall(text)
    try:
        OmegaConf.create({"key": text})
        are_known = all(_is_known(name, bool(colon)) for name, colon in names)
    except GrammarParseError:
        are_known = False
    return text if are_known else literal(text)


def _is_known(name: str, is_call: bool) -> bool:
    """A resolver, or a key, or a key relative to its own."""
    if is_call:
        return name in RESOLVERS or OmegaConf.has_resolver(name)
    return name in kinds() or name.startswith(("hydra.", "."))
