"""How a check of the user's values complains."""

from itertools import pairwise


class InputError(ValueError):
    """Something the user can mend: one line with key, value, what is allowed. The command exits with code 2.

    >>> import fresco_dist
    >>> raise fresco_dist.InputError("seed must be at least 0; got -1. Try 0.")
    Traceback (most recent call last):
    fresco_dist.config.checks.InputError: seed must be at least 0; got -1. Try 0.
    """


def require(condition: bool, key: str, value: object, allowed: str, remedy: str) -> None:
    """Raise InputError "KEY must be ALLOWED; got VALUE. REMEDY" unless `condition` holds."""
    if not condition:
        raise InputError(f"{key} must be {allowed}; got {value}. {remedy}")


def check_sigmas(sigmas: list[float], group: str) -> None:
    """Raise InputError unless these can be the noise levels of steps."""
    falling = all(high > low for high, low in pairwise([*sigmas, 0.0])) and 0.0 < max(sigmas, default=2.0) <= 1.0
    allowed = "falling noise levels in (0, 1], one per step"
    require(falling, f"{group}.sigmas", sigmas, allowed, "Try [1.0,0.9,0.75,0.5].")
