"""Who may join a Ray cluster: this run shows a private token to every cluster it joins, and joins no open one.

Whoever reaches a cluster without authentication can run any code on it. The environment is passed in, never read here.
Source: https://docs.ray.io/en/latest/ray-security/token-auth.html
"""

import stat
from collections.abc import Mapping

from fresco_dist.config import expanded, require

DEFAULT_TOKEN_PATH = "~/.ray/auth_token"


def require_token(environment: Mapping[str, str]) -> None:
    """Raise InputError unless token authentication is on and the token's file, if that is used, is private."""
    mode = environment.get("RAY_AUTH_MODE")
    remedy = "Start the cluster with RAY_AUTH_MODE=token and set the same here."
    require((mode or "").lower() == "token", "RAY_AUTH_MODE", mode, "token to join a Ray cluster", remedy)
    if environment.get("RAY_AUTH_TOKEN"):
        return
    key = "RAY_AUTH_TOKEN_PATH"
    path = expanded(environment.get(key) or DEFAULT_TOKEN_PATH)
    if path.exists():  # Ray itself says where it looked for a token
        bits = stat.S_IMODE(path.stat().st_mode)
        allowed = "a file that only you can read"
        require(bits & 0o077 == 0, key, f"{path} with mode {bits:o}", allowed, f"Run chmod 600 {path}.")
