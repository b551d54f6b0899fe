"""Files that are either whole or absent, and a folder that belongs to one process at a time.

A file written here appears under its name only when every byte of it is on the disk: it is written beside its place,
flushed, and renamed over it. A process killed in between leaves a hidden `.NAME.PID.tmp` that `sweep` removes.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from maquette.errors import RunFailed, UserError

DISK_FULL = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))
"""No space, file size limit, quota: the machine could not do it (exit 1)."""
UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EEXIST)
"""Not allowed, read-only, or no place for a folder: the option is wrong (exit 2)."""


def explain_os_error(error: OSError, path: Path | str) -> UserError | RunFailed:
    """The one sentence for an operating system's refusal to write `path`, as the error with the right exit code."""
    reason = error.strerror or str(error)
    if error.errno in DISK_FULL:
        return RunFailed(
            f"The disk is full or a size limit was reached while writing {path} ({reason}); everything finished before "
            f"that is kept, so free some space and run the same command again."
        )
    if error.errno in UNWRITABLE:
        return UserError(f"Cannot write to {path} ({reason}); choose a folder that you may write to with --out.")
    return RunFailed(f"Writing {path} failed ({reason}); what was finished before that is kept.")


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """A path to write to that becomes `path` when the block ends well, and vanishes when it does not.

    The temporary file keeps the suffix of `path`, because many writers choose their format by it. Raises UserError or
    RunFailed where the disk refuses.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem[:80]}.{os.getpid()}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
        _flush(path.parent)
    except OSError as error:
        if not _concerns(error, temporary, path):
            raise
        raise explain_os_error(error, path) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_bytes(path: Path | str, data: bytes) -> None:
    """Write `data` to `path` at once or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path | str, text: str) -> None:
    """Write `text` as UTF-8 with `\\n` line ends to `path` at once or not at all."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path | str, value: Any) -> None:
    """Write `value` as indented JSON to `path` at once or not at all; NaN is refused, as JSON has none (ValueError)."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def atomic_folder(path: Path | str) -> Iterator[Path]:
    """A folder to fill that replaces `path` when the block ends well, and vanishes when it does not."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        yield temporary
        for folder, _, names in os.walk(temporary):
            for name in names:
                _flush(Path(folder) / name)
            _flush(Path(folder))
        shutil.rmtree(path, ignore_errors=True)
        os.replace(temporary, path)
        _flush(path.parent)
    except OSError as error:
        if not _concerns(error, temporary, path):
            raise
        raise explain_os_error(error, path) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _concerns(error: OSError, temporary: Path, path: Path) -> bool:
    """Whether `error` is about writing `path`, and not about another file that the block was reading."""
    if error.filename is None or error.errno in DISK_FULL:
        return True
    about = Path(os.fsdecode(error.filename))
    return about in (path, path.parent) or about == temporary or temporary in about.parents or about in path.parents


def sweep(folder: Path) -> None:
    """Remove the temporary files and folders that killed processes left below `folder`."""
    for leftover in list(folder.rglob(".*.tmp*")):
        if re.fullmatch(r"\..*\.\d+\.tmp(\.\w+)?", leftover.name):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Ask the operating system to put `path` (a file or a folder) on the disk; Windows cannot flush folders."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network and FUSE file systems cannot flush
            raise
    finally:
        os.close(descriptor)


_held: set[Path] = set()


class FolderLock:
    """A lock on `folder` that the operating system drops when the process ends, however it ends.

    POSIX record locks are used rather than flock, because worker processes forked from this one would inherit the
    latter and keep a killed run's folder locked. They do not exclude two runs inside one process, so that is tracked
    here. The file `.lock` stays behind, empty of meaning; its text names the last owner for the error message.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self._file: IO[str] | None = None

    def acquire(self) -> None:
        """Take the lock or raise UserError at once; never waits."""
        if self.folder in _held:
            raise UserError(f"Another run of this process is writing to {self.folder}; use another folder.")
        path = self.folder / ".lock"
        try:
            file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 (held until release)
        except OSError as error:
            raise explain_os_error(error, self.folder) from error
        if not _lock(file):
            file.seek(0)
            owner = file.read(40).strip()
            file.close()
            who = f"process {owner}" if owner.isdigit() else "another process"
            raise UserError(
                f"A run is already writing to {self.folder} ({who}); wait until it ends, or choose another folder "
                f"with --out."
            )
        self._file = file
        _held.add(self.folder)
        with suppress(OSError):  # a full disk must not stop us from reading a finished run; the name is only a courtesy
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()

    def release(self) -> None:
        """Give the lock back; does nothing when it is not held."""
        if self._file is not None:
            _held.discard(self.folder)
            with suppress(OSError):
                self._file.close()
            self._file = None


if os.name == "nt":
    import msvcrt

    def _lock(file: IO[str]) -> bool:
        """Lock one byte far behind the text, so that the owner's name stays readable for others."""
        file.seek(1 << 20)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
        except OSError:
            return False
        return True

else:
    import fcntl

    def _lock(file: IO[str]) -> bool:
        """Take the whole file's record lock without waiting."""
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return False
            raise explain_os_error(error, file.name) from error
        return True
