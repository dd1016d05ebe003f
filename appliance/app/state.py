"""The state directory: made with the right owner and mode, and used by one daemon at a time."""

import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from appliance.app.errors import AppError, PrivilegeMissing
from appliance.app.privileges import ServiceUser
from appliance.app.wiring import Places


class StateDirectory:
    """The lock on a state directory. Its file keeps our process id for ``weir reload``; the kernel drops the lock
    with the process, however that ends."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._lock = -1

    def __enter__(self) -> Self:
        """Make the directory and lock it. Raises ``AppError`` when another daemon uses it."""
        root = self._places.root
        try:
            root.mkdir(mode=0o755, parents=True, exist_ok=True)
            # Root's own file in root's own directory: the service user cannot put a link in its place.
            self._lock = os.open(self._places.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        except OSError as error:
            hint = "run as root, or set state_dir" if isinstance(error, PermissionError) else "set state_dir"
            raise PrivilegeMissing(f"cannot use {root} as state_dir: {error.strerror} ({hint})") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(self._lock, 20).decode(errors="replace").strip()
            os.close(self._lock)
            raise AppError(
                f"{root} is in use by another weir (process {holder or 'unknown'}): "
                "stop that one, or give this one a state_dir of its own"
            ) from None
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the directory back. The file stays, empty: if it were removed, two could hold a lock on two of them."""
        os.ftruncate(self._lock, 0)
        os.close(self._lock)

    def prepare(self, user: ServiceUser | None) -> None:
        """Make what the service user writes to, its own and nobody else's.

        Raises ``PrivilegeMissing`` when the user could not get there.
        """
        for path in self._places.service_directories:
            path.mkdir(mode=0o700, exist_ok=True)
            if path.is_symlink():
                raise AppError(f"{path} is a link: state_dir must hold directories of its own")
            if user is not None:
                os.chown(path, user.uid, user.gid, follow_symlinks=False)
            path.chmod(0o700)
        if user is not None and (closed := _closed_to(user, self._places.root)):
            raise PrivilegeMissing(
                f"user {user.name!r} may not enter {closed}, so it cannot use state_dir {self._places.root} "
                f"(chmod o+x {closed}, or choose another state_dir)"
            )


def running(places: Places) -> int | None:
    """The process id of the daemon that uses this state directory, if there is one."""
    try:
        with places.lock.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(file.read(20))
    except (OSError, ValueError):
        return None
    return None


def _closed_to(user: ServiceUser, path: Path) -> Path | None:
    """The first directory on the way that the user may not enter."""
    resolved = path.resolve()
    for directory in [*reversed(resolved.parents), resolved]:
        found = directory.stat()
        shift = 6 if found.st_uid == user.uid else 3 if found.st_gid == user.gid else 0
        if not found.st_mode >> shift & 1:
            return directory
    return None
