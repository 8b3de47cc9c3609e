"""Memory of this process on the host: what it can still take, what it holds, what it gives back."""

from __future__ import annotations

import ctypes
import functools
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from stowplan.errors import BudgetError

__all__ = [
    "ALIGNMENT",
    "aligned_buffer",
    "free_host_bytes",
    "give_back_host",
    "large_blocks_apart",
    "not_inherited",
    "resident_host_bytes",
]

ALIGNMENT = 64
"""Bytes; where memory begins at a multiple of these vector units and XLA take it as it is."""

_NO_LIMIT = 2**62  # of control groups: version 1 writes 2**63 less a page
_Files = tuple[str, str, str]  # limit, usage, and what the last counts of it that is given back
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt
_LARGE = 2**16  # bytes from which on blocks are to lie apart
_MOST_GAP, _MOST_GAPS = 2**30, 4096  # bytes of a gap of the heap, and how many are looked for

_DONT_FORK, _DO_FORK = 10, 11  # of madvise

_lock = threading.Lock()
_inside: list[None] = []  # one for each caller whose large blocks lie apart


def free_host_bytes(root: str | Path = "/") -> int:
    """Bytes that this process can still take on the host.

    The least of what the kernel calls available (``MemAvailable`` of ``/proc/meminfo``, else
    ``os.sysconf``) and what every control group of the process has left: its limit less its usage,
    of which file pages not used lately do not count, since they are given back on demand. Control
    groups of both versions are read, ancestors included.

    Parameters
    ----------
    root
        Where ``proc`` and ``sys`` are looked for.
    """
    root = str(root).rstrip("/")
    available = _available_bytes(root)
    found = [*_group_bytes(root), *([] if available is None else [available])]
    return max(min(found), 0) if found else max(_sysconf_bytes(), 0)


def resident_host_bytes() -> int:
    """Bytes of this process that lie in memory; 0 where the system does not say.

    >>> resident_host_bytes() >= 0
    True
    """
    file = _statm(os.getpid())
    return 0 if file is None else int(os.pread(file, 128, 0).split()[1]) * _page_bytes()


def give_back_host() -> None:
    """Hand memory that is free, but kept by the allocator, back to the system.

    Blocks aligned for vector units leave gaps in the heap of glibc that small objects settle in, so
    that it grows from batch to batch.
    """
    trim = _from_libc("malloc_trim")
    if trim is not None:
        trim(0)


def aligned_buffer(size: int) -> NDArray[np.uint8]:
    """Give bytes of memory that begins at a multiple of `ALIGNMENT`.

    >>> buffer = aligned_buffer(1000)
    >>> buffer.nbytes, buffer.ctypes.data % ALIGNMENT
    (1000, 0)
    """
    buffer = np.empty(size + ALIGNMENT, np.uint8)
    first = -buffer.ctypes.data % ALIGNMENT
    return buffer[first : first + size]


@contextmanager
def not_inherited(buffer: NDArray[np.uint8]) -> Iterator[bool]:
    """Keep the whole pages of a buffer from processes that are forked meanwhile.

    What a disk writes straight into a page while a process is forked can end up in the page of the
    other one (open(2), O_DIRECT). Gives whether the system does so: Linux alone.
    """
    safe = _advise(buffer, _DONT_FORK)
    try:
        yield safe
    finally:
        if safe:
            _advise(buffer, _DO_FORK)


@contextmanager
def large_blocks_apart() -> Iterator[None]:
    """Let large blocks come from the system one by one, and go back when they are freed.

    The heap then takes no more than what is alive, but each new block costs its page faults. A
    block that is freed in the heap would stay resident, so gaps of it that would hold a large one
    are taken until the end, but not touched. glibc alone; a threshold set by the environment is
    left as it is.
    """
    set_option = _from_libc("mallopt")
    if set_option is None or "MALLOC_MMAP_THRESHOLD_" in os.environ:
        yield
        return
    give_back_host()
    with _lock:
        _inside.append(None)
        set_option(_MMAP_THRESHOLD, _LARGE)
    taken: list[int] = []
    try:
        taken += _take_gaps()
        yield
    finally:
        _, free, _ = _heap_functions()
        for address in taken:
            free(address)
        with _lock:
            _inside.pop()
            if not _inside:  # of all threads, which share the heap
                set_option(_MMAP_THRESHOLD, 2**25)  # where glibc settles by itself
                set_option(_TRIM_THRESHOLD, 2**26)


def _advise(buffer: NDArray[np.uint8], advice: int) -> bool:
    """Tell the system about the whole pages of a buffer; say whether it listens."""
    advise = _from_libc("madvise")
    if advise is None or not sys.platform.startswith("linux"):
        return False
    page = _page_bytes()
    begin = -(-buffer.ctypes.data // page) * page
    size = max((buffer.ctypes.data + buffer.nbytes) // page * page - begin, 0)
    return not advise(ctypes.c_void_p(begin), ctypes.c_size_t(size), advice)


@functools.cache
def _from_libc(name: str) -> Callable[..., int] | None:
    """Give a function of glibc, None where there is none."""
    try:
        function: Callable[..., int] = getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):
        return None
    return function


def _take_gaps() -> list[int]:
    """Take blocks of the heap that are free and large, the largest first; give their addresses.

    Of a block in its heap glibc lets all be used but 8 bytes of a multiple of 16; of what comes
    from the system by itself, all but 16.
    """
    take, free, usable = _heap_functions()
    taken: list[int] = []
    size = _MOST_GAP
    while size >= _LARGE and len(taken) < _MOST_GAPS:
        address = take(size)
        if address and usable(address) % 16 == 8:
            taken.append(address)
            continue
        if address:
            free(address)
        size //= 2
    return taken


@functools.cache
def _heap_functions() -> tuple[Callable[..., int], Callable[..., None], Callable[..., int]]:
    """Give malloc, free and malloc_usable_size, called with the lock of the interpreter held."""
    library = ctypes.PyDLL(None)
    take, free, usable = library.malloc, library.free, library.malloc_usable_size
    take.argtypes, take.restype = [ctypes.c_size_t], ctypes.c_void_p
    free.argtypes, free.restype = [ctypes.c_void_p], None
    usable.argtypes, usable.restype = [ctypes.c_void_p], ctypes.c_size_t
    return take, free, usable


@functools.cache
def _statm(process: int) -> int | None:
    """Open what Linux says of this process, once for it and each that is forked: that is slow."""
    try:  # not by its number, which is another one's where /proc is of another namespace
        return os.open("/proc/self/statm", os.O_RDONLY)
    except OSError:
        return None


@functools.cache
def _page_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE")


def _available_bytes(root: str) -> int | None:
    text = _read(f"{root}/proc/meminfo")
    match = re.search(r"^MemAvailable:\s*(\d+) kB$", text, re.MULTILINE)
    return int(match.group(1)) * 1024 if match else None


def _sysconf_bytes() -> int:
    for name in ("SC_AVPHYS_PAGES", "SC_PHYS_PAGES"):  # macOS knows the second alone
        try:
            return os.sysconf(name) * os.sysconf("SC_PAGE_SIZE")
        except (AttributeError, ValueError, OSError):
            continue
    raise BudgetError(
        "free memory is unknown on this system. Give bytes: budget='4 GiB', or "
        "STOWPLAN_BUDGET=4GiB."
    )


def _group_bytes(root: str) -> Iterator[int]:
    """Give what each control group with a limit has left."""
    for group, files in _groups(root):
        left = _left(group, *files)
        if left is not None:
            yield left


@functools.lru_cache(maxsize=64)
def _groups(root: str) -> tuple[tuple[str, _Files], ...]:
    """Find the folders of control groups that can limit this process, which stays in them."""
    found = []
    for line in _read(f"{root}/proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            mounts, files = ("", "unified"), ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            mounts = (controllers, "memory")
            files = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        inner = PurePosixPath(path.lstrip("/"))
        for mount in dict.fromkeys(mounts):
            for group in (inner, *inner.parents):  # a container may see its own group as the root
                folder = f"{root}/sys/fs/cgroup/{mount}/{group}"
                if Path(folder, files[0]).exists():
                    found.append((folder, files))
    return tuple(found)


def _left(group: str, limit: str, usage: str, reclaimable: str) -> int | None:
    most = _read(f"{group}/{limit}").strip()
    if not most.isdigit() or int(most) > _NO_LIMIT:  # "max"
        return None
    used = _read(f"{group}/{usage}").strip()
    if not used.isdigit():
        return None
    match = re.search(rf"^{reclaimable} (\d+)$", _read(f"{group}/memory.stat"), re.MULTILINE)
    return int(most) - int(used) + (int(match.group(1)) if match else 0)


def _read(path: str) -> str:
    """Read a small file; each plan reads some, so that a file object would be felt."""
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError:
        return ""
    try:
        return b"".join(iter(lambda: os.read(file, 2**16), b"")).decode()
    except OSError:
        return ""
    finally:
        os.close(file)
