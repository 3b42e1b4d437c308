"""What processes are given by environment variables: nothing reaches out, and a Ray of our own asks for a token."""

import secrets
from collections.abc import MutableMapping

from fresco_dist.config import ClusterConfig
from fresco_dist.runtime.authentication import require_token

OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
}
RAY = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_worker_niceness": "0",  # not Ray's 15: whatever else runs on the machine would bring the workers to a halt
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",  # of several workers that fail together, one is reported
}


def set_defaults(environment: MutableMapping[str, str], values: dict[str, str]) -> None:
    """Give what is not set."""
    for name, value in values.items():
        environment.setdefault(name, value)


def admit(environment: MutableMapping[str, str], cluster: ClusterConfig) -> None:
    """A new token for a Ray that is started here, written nowhere; raises InputError without one for a joined one."""
    if cluster.address is None:
        environment.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    else:
        require_token(environment)
