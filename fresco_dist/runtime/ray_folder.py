"""Where the Ray that is started here keeps its sockets and logs: below TMPDIR, or elsewhere if that is of no use.

A socket's path has little room, and Ray takes none with letters beyond ASCII. Ray itself fails, or waits in vain.
"""

import os
from collections.abc import MutableMapping
from pathlib import Path
from tempfile import TemporaryDirectory

from fresco_dist.config import InputError

VARIABLES = ("RAY_TMPDIR", "TMPDIR")  # Ray takes the first that is set
OTHERS = ("/tmp", "/var/tmp")
MAX_BYTES = 39  # of the 107 of a socket: Ray adds up to 68, /ray/session_DATE_TIME_PROCESS/sockets/plasma_store


def choose_ray_folder(environment: MutableMapping[str, str]) -> str:
    """Set RAY_TMPDIR unless Ray can use the folder that it would take; returns what there is to say, or "".

    Raises InputError if there is none.
    """
    name = next((name for name in VARIABLES if environment.get(name)), None)
    given = environment[name] if name else OTHERS[0]
    faults: dict[str, str] = {}
    for usable in (given, *OTHERS):  # a folder that is tried is made
        faults[usable] = _fault(usable)
        if not faults[usable]:
            break
    else:
        raise InputError(
            f"{name or 'TMPDIR'} must be a folder for Ray's sockets, one that can be written and whose path has at most"
            f" {MAX_BYTES} ASCII letters; got {given} ({faults[given]}), nor can {' or '.join(OTHERS)} be written."
        )
    taken = next((environment[variable] for variable in VARIABLES if variable in environment), OTHERS[0])
    if taken != os.path.abspath(usable):
        environment["RAY_TMPDIR"] = os.path.abspath(usable)
    return "" if usable == given else f"{name}={given} is not for Ray ({faults[given]}): its sockets are in {usable}"


def _fault(folder: str) -> str:
    """What keeps Ray from using it; "" if nothing does."""
    path = Path(folder).absolute()
    if not str(path).isascii():
        return "letters beyond ASCII"
    if len(str(path)) > MAX_BYTES:
        return f"longer than {MAX_BYTES} bytes"
    try:
        (path / "ray").mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".partial-", dir=path / "ray"):
            return ""
    except OSError as error:
        return str(error.strerror)
