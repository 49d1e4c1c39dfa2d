"""Files that are whole at any moment: written beside their place and moved over it, read again where they moved."""

import errno
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

_JSON: dict[type, str] = {dict: "object", list: "array"}
_OURS: set[tuple[int, int]] = set()  # device and number of the files whose lock this process holds


class RunFolderError(Exception):
    """A run folder that cannot be read or must not be written to; the message says what to do."""


def is_temporary(path: Path) -> bool:
    """Whether it is a file that `write_bytes` had begun when the process was killed: .NAME.EXTENSION.TEMPORARY"""
    return path.name.startswith(".") and path.suffix != "" and path.name.count(".") >= 3


def locked(file: IO[str], *, shared: bool = False) -> bool:
    """Try to get the file's lock, which goes with the process however it ends."""
    try:
        import fcntl

        fcntl.lockf(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except ImportError:  # on Windows: there a folder is not claimed
        return True
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        return error.errno != errno.EACCES  # a file system without locks does not protect, nor forbid
    return True


@contextmanager
def ours(file: IO[str]) -> Iterator[None]:
    """Inside, `is_ours` knows that this process holds the file's lock."""
    about = os.fstat(file.fileno())
    key = about.st_dev, about.st_ino
    _OURS.add(key)
    try:
        yield
    finally:
        _OURS.discard(key)


def is_ours(path: Path) -> bool:
    """Whether this process holds the lock of a file: no lock keeps it out, and to open and close it ends its lock."""
    try:
        about = os.stat(path)
    except OSError:
        return False
    return (about.st_dev, about.st_ino) in _OURS


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that, whatever happens, its place holds either the old content or the new.

    Raises:
        RunFolderError: there is a folder in its place, or a file in that of its folder.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise RunFolderError(f"there is a file at {path.parent}, expected a folder or nothing; remove it") from None
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, IsADirectoryError):
            raise RunFolderError(f"there is a folder at {path}, expected a file or nothing; remove it") from None
        raise


def write_json(path: Path, value: Any) -> None:
    """Write JSON with stable formatting, atomically."""
    write_bytes(path, (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())


def _text(path: Path) -> str:
    """A file's text, also where a network file system loses one that is replaced while it is read (NFS 3)."""
    for _ in range(9):
        try:
            return path.read_text(encoding="utf-8")
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
    return path.read_text(encoding="utf-8")


def read_json(path: Path, kind: type = object, remedy: str = "restore it") -> Any:
    """Read JSON; a missing, unreadable or damaged file, or another type, gives a `RunFolderError` that names it."""
    try:
        value = json.loads(_text(path))
    except (FileNotFoundError, NotADirectoryError):
        where = f"is {path.parent} a run folder? `grokscape run` makes one"
        raise RunFolderError(f"{path} does not exist; {where}") from None
    except OSError as error:
        raise RunFolderError(f"{path} cannot be read ({error.strerror}): expected a JSON file; {remedy}") from None
    except ValueError as error:  # not JSON, or not text
        raise RunFolderError(f"{path} is not valid JSON ({error}); {remedy}") from None
    if not isinstance(value, kind):
        raise RunFolderError(f"{path} is damaged: expected a JSON {_JSON[kind]}, got {value!r:.40}; {remedy}")
    return value
