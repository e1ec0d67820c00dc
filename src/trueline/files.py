"""Files that survive: written whole or not at all, sealed by checksums, held by one process.

Whatever outlives a process goes through here, so that a kill, a full disk, a second process or
another user finds either the old state or the new one, and says which.
"""

from __future__ import annotations

import _thread
import contextlib
import hashlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from trueline.errors import UserError

SEAL = "checksums.json"
LOCK = ".lock"
BEAT, SILENT = 20.0, 300.0
"""A lock is touched every so many seconds; untouched for so many, its owner is dead."""


def umask() -> int:
    """The process's file mode creation mask."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def follow_umask(path: str | os.PathLike[str]) -> None:
    """Give a file the permissions that any new file of this process has.

    Libraries that write through temporary files leave them readable by their owner alone, and a
    cache that is shared by a group then cannot be read by it.
    """
    with contextlib.suppress(OSError):  # another user's file, or a file system without modes
        os.chmod(path, 0o666 & ~umask())


@contextlib.contextmanager
def whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A path to write to; it takes the place of ``path`` when the block ends without an error.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "a.txt"
        >>> with whole(target) as part:
        ...     _ = part.write_text("all of it")
        >>> target.read_text()
        'all of it'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.part")
    try:
        yield part
        follow_umask(part)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            part.unlink()


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write text so that a reader sees the old file or the whole new one, never a part."""
    with whole(path) as part:
        part.write_text(text, "utf-8", newline="\n")


def cache_folder(kind: str) -> Path:
    """Where what can be made again is kept: ``$TRUELINE_CACHE`` or ``~/.cache/trueline``."""
    root = os.environ.get("TRUELINE_CACHE") or Path.home() / ".cache" / "trueline"
    return Path(root) / kind


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write JSON so that a reader sees the old file or the whole new one, never a part."""
    write_text(path, json.dumps(value, indent=2, default=str, ensure_ascii=False) + "\n")


def read_json(path: str | os.PathLike[str], remedy: str) -> Any:
    """The JSON value in a file of ours.

    Raises:
        UserError: it cannot be read; the message names it and ``remedy``.
    """
    try:
        return json.loads(Path(path).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({_reason(error)}); {remedy}") from None


def mend(path: Path) -> bool:
    """Cut off a last line that a kill left without its end; whether there was one."""
    if not path.exists():
        return False
    with path.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        end = size
        while end > 0:  # backwards, block by block, to the last newline
            start = max(0, end - 4096)
            file.seek(start)
            at = file.read(end - start).rfind(b"\n")
            if at >= 0:
                end = start + at + 1
                break
            end = start
        if end == size:
            return False
        file.truncate(end)
    return True


def append(path: Path, row: Mapping[str, Any]) -> None:
    """Write one row and hand it to the operating system: it outlives this process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # ensure_ascii keeps odd line separators and lone surrogates out of a file read line by line
    line = memoryview((json.dumps(row, ensure_ascii=True) + "\n").encode())
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        while line:  # in one go, so that lines of two processes never mix; more on a full disk
            line = line[os.write(handle, line) :]
    finally:
        os.close(handle)


# --- seals ----------------------------------------------------------------------------------------


def checksum(path: Path) -> str:
    """32 hexadecimal digits of a file's content (blake2b)."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def seal(folder: str | os.PathLike[str]) -> None:
    """Write the sizes and checksums of all files in ``folder``: the last thing that is written
    there, so that a folder with a seal is whole."""
    folder = Path(folder)
    write_json(
        folder / SEAL,
        {
            str(path.relative_to(folder)): {"size": path.stat().st_size, "sum": checksum(path)}
            for path in _sealed(folder)
        },
    )


def fault(folder: str | os.PathLike[str]) -> str | None:
    """What is wrong with a sealed folder: a file that is missing, short or changed. None: nothing.

    A file that came later is no fault: the seal speaks of what was there.
    """
    folder = Path(folder)
    if not (folder / SEAL).is_file():
        return "it was not finished"
    try:
        files = json.loads((folder / SEAL).read_text("utf-8"))
        entries = [(name, int(facts["size"]), str(facts["sum"])) for name, facts in files.items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{SEAL} cannot be read"
    for name, size, expected in entries:
        path = folder / name
        try:
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size} bytes where {size} were written"
            if checksum(path) != expected:
                return f"{name} is not as it was written"
        except OSError as error:
            return f"{name}: {_reason(error)}"
    return None


def _sealed(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.rglob("*") if path.is_file() and path.name not in (SEAL, LOCK)
    )


# --- locks ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Owner:
    """The process that holds a folder."""

    pid: int
    host: str
    started: float

    @classmethod
    def here(cls) -> Owner:
        """This process."""
        return cls(os.getpid(), socket.gethostname(), psutil.Process().create_time())

    @property
    def local(self) -> bool:
        """Whether it is, or was, on this host."""
        return self.host == socket.gethostname()

    def alive(self, lock: Path, now: float | None = None) -> bool:
        """Whether it may still be at work. A process of another host is, while the lock that it
        holds is touched; ``now`` is best what the lock's file system takes for the time."""
        if not self.local:
            try:
                return (time.time() if now is None else now) - lock.stat().st_mtime < SILENT
            except FileNotFoundError:
                return False
        try:
            return abs(psutil.Process(self.pid).create_time() - self.started) < 1
        except psutil.NoSuchProcess:
            return False
        except psutil.AccessDenied:
            return True


class Lock:
    """One process at a time in a folder; the lock of a process that has died is taken over.

    The process that holds it may take it again, for a part of its work, and touches it every
    :data:`BEAT` seconds: what another host does not touch for :data:`SILENT` seconds is dead.

    Args:
        folder: it is made where it is missing.

    Raises:
        UserError: another process holds it; the message names process, host and since when.

    Example:
        >>> import tempfile
        >>> with Lock(tempfile.mkdtemp()) as lock:
        ...     lock.path.name
        '.lock'
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.path = Path(folder).absolute() / LOCK

    def __enter__(self) -> Lock:
        if _held.get(self.path):
            _held[self.path] += 1
            return self
        self._acquire()
        _held[self.path] = 1
        _taken_by[self.path] = os.getpid()
        _keep_touching()
        return self

    def _acquire(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        mine = Owner.here()
        text = json.dumps({"pid": mine.pid, "host": mine.host, "started": mine.started})
        part = self.path.with_name(f"{LOCK}.{uuid.uuid4().hex[:8]}")
        part.write_text(text, "utf-8", newline="\n")
        follow_umask(part)
        try:
            for _ in range(100):
                with contextlib.suppress(FileExistsError):
                    _place(part, self.path)
                    return
                self._take_over(part.stat().st_mtime)
            raise UserError(f"{self.path} changes hands all the time; try again")
        finally:
            part.unlink(missing_ok=True)

    def _take_over(self, now: float) -> None:
        """Remove a lock whose owner is gone.

        Raises:
            UserError: its owner may be at work.
        """
        owner = _owner(self.path)
        if owner is not None and owner.alive(self.path, now):
            when = time.strftime("%Y-%m-%d %H:%M", time.localtime(owner.started))
            remedy = "" if owner.local else f" ({SILENT / 60:g} minutes, where it has died)"
            raise UserError(
                f"{self.path.parent} is in use by process {owner.pid} on {owner.host}, begun at "
                f"{when}; wait{remedy}, or give another folder"
            )
        aside = self.path.with_name(f"{LOCK}.{uuid.uuid4().hex[:8]}")
        with contextlib.suppress(FileNotFoundError):
            os.rename(self.path, aside)  # of several that see a dead owner, one gets to move it
            if _owner(aside) != owner:  # somebody took over in between: give it back
                with contextlib.suppress(FileExistsError):
                    _place(aside, self.path)
            aside.unlink()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _held[self.path] -= 1
        if not _held[self.path]:
            del _held[self.path], _taken_by[self.path]
            if _owner(self.path) in (None, Owner.here()):
                self.path.unlink(missing_ok=True)


_held: dict[Path, int] = {}
"""The locks of this process, and how often each is taken. A process that was forked while one was
held may take it again, too."""

_taken_by: dict[Path, int] = {}
"""Which process took each: a forked one has no say in what its parent holds."""


_touching: list[threading.Thread] = []
"""The thread that touches them; none in a process that was forked since."""


def _keep_touching() -> None:
    def forever() -> None:
        while True:
            touch()
            time.sleep(BEAT)

    if not any(thread.is_alive() for thread in _touching):
        _touching[:] = [threading.Thread(target=forever, daemon=True)]
        _touching[0].start()


def touch() -> None:
    """Show that the owner of this process's locks lives. One that was taken over while this
    process stood still ends its work as Control-C does."""
    for path in [path for path, taker in list(_taken_by.items()) if taker == os.getpid()]:
        owner = _owner(path)
        if owner == Owner.here():
            with contextlib.suppress(OSError):
                os.utime(path)
        elif owner is not None and path in _held:
            said = f"\n{path.parent} was taken over by process {owner.pid} on {owner.host}\n"
            os.write(2, said.encode())
            _thread.interrupt_main()


def _owner(path: Path) -> Owner | None:
    """Who holds a lock; None where the file is gone or says nothing."""
    try:
        facts = json.loads(path.read_text("utf-8"))
        return Owner(int(facts["pid"]), str(facts["host"]), float(facts["started"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _place(source: Path, target: Path) -> None:
    """Put a file where there is none, in one go; FileExistsError where there is one."""
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        with target.open("x", encoding="utf-8") as file:
            file.write(source.read_text("utf-8"))


def _reason(error: BaseException) -> str:
    """Why, without the path that the message names already."""
    return (getattr(error, "strerror", None) or str(error)).strip().split("\n", 1)[0]
