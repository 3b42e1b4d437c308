"""The claim on a run folder: a locked file in it that says who is at work there. A folder has one run at a time.

The kernel drops the lock when its owner dies, also over NFS: a file that a killed run has left keeps nobody out. The
lock is flock's, which keeps out the same process, too.
"""

import fcntl
import os
import platform
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from fresco_dist.config import InputError

LOCK = ".in_use"


class Claim:
    """One run's hold on its folder, until `release` or the end of a `with`.

    `unlocked` says why it keeps nobody out, on a file system without locks.
    """

    def __init__(self, folder: Path) -> None:
        """Raises InputError if another run holds the folder, OSError if no file can be made in it."""
        self.unlocked = ""
        self._path = folder / LOCK
        self._file = -1
        try:
            while not self._take():
                self._close()
            now = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, f"process {os.getpid()} on {platform.node()} since {now}".encode(), 0)
            os.fsync(self._file)  # for readers on other machines
        except BaseException:
            self._close()
            raise

    def _take(self) -> bool:
        """Lock the file; False if it is not the one that others find, since its last owner has just removed it."""
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return os.path.samestat(os.fstat(self._file), self._path.stat())
        except FileNotFoundError:
            return False
        except BlockingIOError:
            owner = os.pread(self._file, 1000, 0).decode(errors="replace") or "another run"
            raise InputError(
                f"hydra.run.dir must be a folder that no other run is using; got {self._path.parent}, in use by"
                f" {owner}. Wait for its end, or give another folder."
            ) from None
        except OSError as error:
            self.unlocked = error.strerror or str(error)
            return True

    def release(self) -> None:
        """Let others have the folder."""
        if self._file >= 0:
            with suppress(OSError):  # a file that stays keeps nobody out
                self._path.unlink()
            self._close()

    def _close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> "Claim":
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()
