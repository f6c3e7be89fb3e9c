"""Writing files and folders so that a crash, a full disk or a second writer never costs what was there before.

A new file or folder is made under a temporary name beside its target (same folder, hence same file system), synced to
the disk, and only then renamed into place. Whoever looks at the target sees the old content or the new, never a part of
either.

A run that is killed leaves its temporary name behind: `.NAME.cueva-new-PID-TOKEN` (unfinished) or, where the system
cannot exchange two folders in one step, `.NAME.cueva-old-PID-TOKEN` (the previous content, renamed aside). The next
writer of the same target removes them once their owner is gone; `recover_folder` brings an `old` one back if its target
is missing.
"""

import contextlib
import ctypes
import errno
import hashlib
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

from cueva.errors import CheckpointError

try:
    import fcntl
except ImportError:  # Windows: leftovers are then never cleaned, because their owner cannot be asked for safely
    fcntl = None

_FULL: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN: Final = {errno.EACCES, errno.EPERM, errno.EROFS}
_RENAME_EXCHANGE: Final = 2
_AT_FDCWD: Final = -100


def atomic_write(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Write a whole file: afterwards `path` holds `data`, or, after an error or a crash, what it held before.

    Text is written as UTF-8. Missing parent folders are made. A symbolic link is followed, not replaced.

    Raises:
        CheckpointError: the disk is full, the folder is read-only or the path cannot be a file; names the path and the
            bytes needed and free.
    """
    target = Path(os.path.realpath(path))
    content = data.encode() if isinstance(data, str) else data
    with disk_errors(target, len(content)):
        target.parent.mkdir(parents=True, exist_ok=True)
        _clean(target)
        temporary = _sibling(target, "new")
        # 0o666 leaves the permissions to the user's umask, as any plainly opened file.
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        try:
            with os.fdopen(descriptor, "wb") as file:
                _lock(file.fileno())
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        fsync_folder(target.parent)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str], *, needed_bytes: int | None = None) -> Iterator[Path]:
    """Give an empty temporary folder to fill; at the end of the block it becomes `path`, whole and synced.

    If the block raises, the temporary folder is removed and `path` is what it was. An existing `path` is replaced only
    after the new folder is on the disk: exchanged in one step where the system can (Linux), else renamed aside first.
    Files of the old folder that are open or memory-mapped stay readable (not on Windows, which refuses to rename them).

        with atomic_folder("runs/a/model", needed_bytes=total) as folder:
            (folder / "config.json").write_text("{}")

    Args:
        path: the folder to make or replace, with everything in it. Parents are made. A symbolic link is followed.
        needed_bytes: refuse before anything is written when the disk has less than this free.

    Raises:
        CheckpointError: the disk is full, the place is read-only, or `path` is not a folder.
    """
    target = Path(os.path.realpath(path))
    with disk_errors(target, needed_bytes):
        if target.exists() and not target.is_dir():
            raise CheckpointError(
                f"{target} is a file, but a folder is to be written there", way_out="try another path"
            )
        recover_folder(target)
        if needed_bytes is not None:
            require_space(target, needed_bytes)
        target.parent.mkdir(parents=True, exist_ok=True)
        _clean(target)
        temporary = _sibling(target, "new")
        temporary.mkdir()
        lock = _open_locked(temporary)
        try:
            yield temporary
            for folder, _, names in os.walk(temporary, topdown=False):
                for name in names:
                    _fsync(os.path.join(folder, name))
                fsync_folder(folder)
            _replace_folder(temporary, target)
        finally:
            if lock is not None:
                os.close(lock)
            # Gone already when the rename worked without exchange; holds the old content when it was exchanged.
            shutil.rmtree(temporary, ignore_errors=True)
        fsync_folder(target.parent)


def recover_folder(path: str | os.PathLike[str]) -> bool:
    """Bring back the folder that a killed run had renamed aside, if `path` is missing; True if there was one."""
    target = Path(os.path.realpath(path))
    if target.exists():
        return False
    asides = [aside for aside in _leftovers(target) if ".cueva-old-" in aside.name and _is_abandoned(aside)]
    if not asides:
        return False
    with disk_errors(target):
        os.rename(max(asides, key=lambda aside: aside.stat().st_mtime), target)
        fsync_folder(target.parent)
    return True


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Hash a file's content; hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync_folder(path: str | os.PathLike[str]) -> None:
    """Make the names in a folder durable: a rename is on the disk only after its folder is synced."""
    if os.name == "posix":  # Windows cannot open folders, and has no need to
        _fsync(path)


def require_space(path: str | os.PathLike[str], needed_bytes: int) -> None:
    """Check that the disk which holds, or would hold, `path` has this many bytes free.

    Raises:
        CheckpointError: it has not; names both numbers.
    """
    free = _free_bytes(path)
    if free is not None and free < needed_bytes:
        raise _no_room(path, needed_bytes)


@contextlib.contextmanager
def disk_errors(path: str | os.PathLike[str], needed_bytes: int | None = None) -> Iterator[None]:
    """Turn the system's refusals to write at or below `path` into sentences; other errors pass.

    Raises:
        CheckpointError: no room, or no permission, or a path that cannot exist.
    """
    try:
        yield
    except OSError as error:
        if not _concerns(error, Path(path)):
            raise
        if error.errno in _FULL:
            raise _no_room(path, needed_bytes) from error
        if error.errno in _FORBIDDEN:
            why = "the file system is read-only" if error.errno == errno.EROFS else "permission is denied"
            raise CheckpointError(
                f"cannot write {path}: {why}; what was there before is untouched",
                way_out="try a folder that you may write to",
            ) from error
        if error.errno in (errno.EEXIST, errno.ENOTDIR, errno.EISDIR):
            raise CheckpointError(
                f"cannot write {path}: a file is where a folder is needed, or the other way round",
                way_out="try another path",
            ) from error
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            raise CheckpointError(
                f"cannot write {path}: {os.strerror(error.errno).lower()}", way_out="try another path"
            ) from error
        raise


# --- private ----------------------------------------------------------------------------------------------------------


def _concerns(error: OSError, target: Path) -> bool:
    """Whether an error is about the target, its temporary sibling or its parents, not about a file being read."""
    if error.filename is None or isinstance(error.filename, int):
        return True
    # The name itself may be a temporary one that is gone by now, so only its folder is resolved.
    named = Path(os.fsdecode(error.filename))
    named = Path(os.path.realpath(named.parent)) / named.name
    place = Path(os.path.realpath(target.parent)) / target.name
    ours = [*named.parents, named]
    temporary = any(p.parent == place.parent and p.name.startswith(f".{place.name}.cueva-") for p in ours)
    return temporary or place in ours or named in place.parents


def _no_room(path: str | os.PathLike[str], needed_bytes: int | None) -> CheckpointError:
    free = _free_bytes(path)
    needed = "" if needed_bytes is None else f" needs {needed_bytes:,} bytes and"
    left = "is full" if free is None else f"has {free:,} bytes free"
    return CheckpointError(
        f"no room to write {path}: it{needed} its disk {left}; what was saved before is untouched",
        way_out="try deleting something there, or a path on another disk",
    )


def _free_bytes(path: str | os.PathLike[str]) -> int | None:
    """Free bytes for an ordinary user on the disk of the nearest existing parent."""
    place = Path(os.path.realpath(path))
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        return shutil.disk_usage(place).free
    except OSError:
        return None


def _sibling(target: Path, kind: Literal["new", "old"]) -> Path:
    return target.with_name(f".{target.name}.cueva-{kind}-{os.getpid()}-{secrets.token_hex(4)}")


def _leftovers(target: Path) -> list[Path]:
    prefixes = (f".{target.name}.cueva-new-", f".{target.name}.cueva-old-")
    try:
        names = os.listdir(target.parent)
    except OSError:
        return []
    return [target.parent / name for name in names if name.startswith(prefixes)]


def _clean(target: Path) -> None:
    """Remove what killed writers of the same target left; whatever cannot be removed is left for the next time."""
    for leftover in _leftovers(target):
        if _is_abandoned(leftover):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    leftover.unlink()


def _is_abandoned(leftover: Path) -> bool:
    """Whether a temporary name's owner is gone: its process no longer runs, and nobody holds the lock on it."""
    if fcntl is None:
        return False
    try:
        owner = int(leftover.name.rsplit("-", 2)[-2])
    except (ValueError, IndexError):
        return False
    # A number may be in use again, also by this very process (in a container it often is 1): then the lock decides.
    if owner != os.getpid():
        try:
            os.kill(owner, 0)
            return False
        except ProcessLookupError:
            pass
        except OSError:
            return False
    try:
        descriptor = os.open(leftover, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    """Hold a lock that the system drops when this process ends, however it ends."""
    if fcntl is not None:
        with contextlib.suppress(OSError):  # a file system without locks: the process number alone must do
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _open_locked(folder: Path) -> int | None:
    if fcntl is None:
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    _lock(descriptor)
    return descriptor


def _fsync(path: str | os.PathLike[str]) -> None:
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _replace_folder(new: Path, target: Path) -> None:
    """Put `new` where `target` is. Afterwards the old content, if any, is under the name `new` or deleted."""
    if not target.exists():
        os.rename(new, target)
        return
    if _exchange(new, target):
        return
    aside = _sibling(target, "old")
    os.rename(target, aside)
    try:
        os.rename(new, target)
    except BaseException:
        os.rename(aside, target)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step (Linux: renameat2); False where the system or the file system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    renameat2.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
    return renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0
