"""Laws of scratch folders: private, exact, and gone with their process."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

import stowplan as sp
from stowplan.errors import StoreError
from stowplan.stores import descriptors, space
from stowplan.stores.scratch import Scratch
from stowplan.stores.space import require_space


@pytest.mark.parametrize("dtype", ["f8", "c16", ">f4", "i1", "bfloat16"])
def test_what_is_saved_comes_back_and_is_removed(tmp_path, dtype):
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    values = np.arange(24).reshape(6, 4).astype(dtype)
    with Scratch(tmp_path, "test") as scratch:
        first, second = scratch.save(values), scratch.save(values[::2])
        assert scratch.bytes == values.nbytes * 3 // 2
        assert first.dtype == values.dtype.newbyteorder("=")
        np.testing.assert_array_equal(first.read(2, 5), values[2:5])
        np.testing.assert_array_equal(second.read(0, 3), values[::2])
        scratch.remove(first)
        assert len(list(scratch.folder.iterdir())) == 1
        np.testing.assert_array_equal(second.read(0, 3), values[::2])
        with pytest.raises(sp.DataError, match="is no array of"):
            scratch.remove(first)
    assert not list(tmp_path.iterdir())
    with pytest.raises(sp.DataError, match="is closed"):
        scratch.save(values)
    scratch.close()


def test_two_of_one_process_share_nothing(tmp_path):
    one, other = Scratch(tmp_path, "test"), Scratch(tmp_path, "test")
    first, second = one.save(np.zeros(4)), other.save(np.ones(4))
    one.close()
    np.testing.assert_array_equal(second.read(0, 4), np.ones(4))
    assert not first.path.exists()
    del other  # nobody holds it any more
    assert not list(tmp_path.iterdir())


def test_nothing_is_left_when_python_ends_nor_taken_by_a_child(tmp_path):
    code = """
import os, sys
import numpy as np
from stowplan.stores.scratch import Scratch
scratch = Scratch(sys.argv[1], "test")
stored = scratch.save(np.ones(4))
if not os.fork():
    sys.exit(0)  # which runs what is left to do at the end
os.wait()
print(stored.path.exists())
raise ValueError("at the end")
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, check=False
    )
    assert done.stdout == b"True\n"
    assert b"at the end" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_what_was_saved_and_nothing_else(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with Scratch(tmp_path, "test") as scratch:
        kept = scratch.save(np.ones(100))
        for where, name in ((os, "posix_fallocate"), (descriptors, "_pwritev")):
            with monkeypatch.context() as patch:
                patch.setattr(where, name, full)
                with pytest.raises(StoreError, match=r"raw finds the disk full: 1600 bytes .*free"):
                    scratch.save(np.ones(200))
            assert list(scratch.folder.iterdir()) == [kept.path]
        assert scratch.bytes == 800
        scratch.save(np.ones(200))


def test_objects_and_single_numbers_are_refused(tmp_path):
    with Scratch(tmp_path, "test") as scratch:
        for values in (np.array([{}], object), np.float64(3)):
            with pytest.raises(sp.DataError, match="no rows of numbers"):
                scratch.save(values)


def test_needs_on_one_disk_are_added_up(tmp_path, monkeypatch):
    monkeypatch.setattr(space, "free_bytes", lambda _: 1000)
    (tmp_path / "a").mkdir()
    require_space([(tmp_path / "a", 500, "scratch"), (tmp_path, 500, "output")], "solve")
    with pytest.raises(
        StoreError,
        match=r"solve: 1001 bytes .*scratch: 500 B, output: 501 B\), 1000 bytes .* are free",
    ):
        require_space(
            [(tmp_path / "a", 500, "scratch"), (tmp_path / "b/c", 501, "output")], "solve"
        )


def test_needs_on_two_disks_are_not(tmp_path, monkeypatch):
    if not os.path.isdir("/dev/shm") or os.stat("/dev/shm").st_dev == os.stat(tmp_path).st_dev:  # noqa: PTH112, PTH116
        pytest.skip("one disk")
    monkeypatch.setattr(space, "free_bytes", lambda _: 1000)
    require_space([(tmp_path, 900, "scratch"), ("/dev/shm", 900, "output")], "solve")


def test_free_bytes_are_those_of_the_system(tmp_path):
    found = os.statvfs(tmp_path)
    free = found.f_bavail * found.f_frsize
    assert abs(descriptors.free_bytes(tmp_path / "not" / "yet") - free) < free / 2
    assert signal.getsignal(signal.SIGXFSZ) == signal.SIG_IGN
