"""Faults at the moments of writing: the n-th of them kills the process, or finds the disk full.

A point is each file opened for writing, renamed, linked, removed, made, cut or flushed below the
watched folders, each line appended, and each file of weights or state written by native code. A
kill in the middle of a write leaves what a kill leaves: half of the bytes.
"""

import errno
import os
import signal
import sys
from pathlib import Path

EVENTS = {"os.rename": "rename", "os.link": "link", "os.remove": "remove", "os.mkdir": "mkdir",
          "os.truncate": "cut", "os.rmdir": "remove", "shutil.rmtree": "remove"}  # fmt: skip
WRITING = os.O_WRONLY | os.O_RDWR


class Points:
    """Counts points below folders, and does something at one of them.

    Args:
        folders: what is watched.
        log: a line for each point goes there, ``number kind path``.
        at: the point that something happens at; None only counts.
        do: "kill", or "full": from that point on, writing finds no room.
    """

    def __init__(self, folders, log=None, at=None, do="kill"):
        self.folders = [os.path.realpath(folder) for folder in folders]
        self.log = None if log is None else os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        self.at, self.do, self.count, self.inside = at, do, 0, False

    def __call__(self):
        """Begin to watch, in this process."""
        import safetensors.torch
        import torch

        self._write, self._fsync = os.write, os.fsync
        os.write, os.fsync = self.write, self.fsync
        for module, name, kind in ((safetensors.torch, "serialize_file", "weights"),
                                   (torch, "save", "state")):  # fmt: skip
            setattr(module, name, self._native(getattr(module, name), kind))
        sys.addaudithook(self._audit)

    def point(self, kind, path, torn=None):
        """One more; where it is the one, the process is gone afterwards."""
        place = os.path.realpath(path)
        if self.inside or not any(place.startswith(f"{folder}/") for folder in self.folders):
            return
        self.inside = True
        try:
            self.count += 1
            if self.log is not None:
                self._write(self.log, f"{self.count} {kind} {place}\n".encode())
            if self.at is None or self.count < self.at:
                return
            if self.do == "kill" and self.count == self.at:
                if torn is not None and self.at % 2:
                    torn()
                os.kill(os.getpid(), signal.SIGKILL)
            if self.do == "full" and kind in ("open", "line", "fsync", "weights", "state", "mkdir"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        finally:
            self.inside = False

    def _audit(self, event, args):
        if event == "open":
            path, mode, flags = args
            writes = (flags or 0) & WRITING or any(c in (mode or "") for c in "wax+")
            if writes and isinstance(path, str | bytes | os.PathLike):
                self.point("open", os.fsdecode(path))
        elif event in EVENTS:
            path = args[1] if event in ("os.rename", "os.link") else args[0]
            if isinstance(path, str | bytes | os.PathLike):
                self.point(EVENTS[event], os.fsdecode(path))

    def write(self, handle, data):
        path = _place(handle)
        if path is not None:
            half = bytes(data)[: len(data) // 2]
            self.point("line", path, lambda: self._write(handle, half))
        return self._write(handle, data)

    def fsync(self, handle):
        path = _place(handle)
        if path is not None:
            self.point("fsync", path, lambda: _halve(path))
        return self._fsync(handle)

    def _native(self, function, kind):
        def written(*args, **kwargs):
            place = next((a for a in (*args, *kwargs.values())
                          if isinstance(a, str | os.PathLike)), None)  # fmt: skip
            if place is None:
                return function(*args, **kwargs)

            def torn():
                function(*args, **kwargs)
                _halve(place)

            self.point(kind, place, torn)
            return function(*args, **kwargs)

        return written


def _place(handle):
    try:
        path = os.readlink(f"/proc/self/fd/{handle}")
    except OSError:
        return None
    return path if path.startswith("/") and Path(path).is_file() else None


def _halve(path):
    with open(path, "rb+") as file:
        file.truncate(os.path.getsize(path) // 2)


def read(log):
    """The points of a counted run: (number, kind, path)."""
    lines = Path(log).read_text("utf-8", errors="replace").splitlines()
    return [(int(n), kind, path) for n, kind, path in (line.split(" ", 2) for line in lines)]
