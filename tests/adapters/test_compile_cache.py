"""A second process compiles nothing that a first one has kept."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import stowplan as sp

SCRIPT = """
import sys
from collections import Counter
import numpy as np
import stowplan as sp

@sp.kernel("(n),(n)->()", ragged="n")
def product(x, y, *, scale):
    return scale * (x * y).sum(axis=-1)

if len(sys.argv) > 1:
    sp.compile_cache(sys.argv[1])
sp.adapters.get_adapter("jax")
import jax
events = Counter()
jax.monitoring.register_event_listener(lambda event, **_: events.update([event]))
x = sp.Ragged(np.arange(12, dtype=np.float32), [3, 4, 5])
data = {"x": x, "y": x}
plan = sp.plan(product, data, on="jax", slots="exact", budget="1 GiB", scale=2.0)
found = sp.run(product, data, plan, on="jax", scale=2.0)
assert found.tolist() == [10.0, 172.0, 830.0], found.tolist()
prefix = "/jax/compilation_cache/cache_"
print(events[prefix + "hits"], events[prefix + "misses"], *plan.memory.batch_bytes)
"""


def told(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True, check=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
    )  # fmt: skip


@pytest.mark.parametrize("how", ["function", "environment"])
def test_a_second_process_compiles_from_the_cache(tmp_path, load_framework, how):
    load_framework("jax")
    folder = tmp_path / "new" / "cache"

    def run():
        if how == "function":
            return told(folder).stdout.split()
        return told(STOWPLAN_COMPILE_CACHE=str(folder)).stdout.split()

    hits, misses, *peaks = run()
    kept = sorted(path.name for path in folder.iterdir() if path.name.endswith("-cache"))
    assert int(hits) == 0
    assert int(misses) == len(kept) >= 3  # a program for each of three shapes
    again, missed, *same = run()
    assert (int(again), int(missed)) == (int(misses), 0)
    assert same == peaks  # a program from the cache says as much of its memory
    assert sorted(path.name for path in folder.iterdir() if path.name.endswith("-cache")) == kept


def test_without_a_folder_nothing_is_kept(tmp_path, load_framework):
    load_framework("jax")
    hits, misses, *_ = told(STOWPLAN_COMPILE_CACHE="").stdout.split()
    assert (hits, misses) == ("0", "0")


def test_a_folder_that_cannot_be_written_to_is_told(tmp_path, load_framework):
    load_framework("jax")
    file = tmp_path / "file"
    file.write_text("no folder")
    with pytest.raises(sp.FrameworkError, match=r"compile_cache: folder=.*cannot be written to"):
        sp.compile_cache(file)
    found = told(STOWPLAN_COMPILE_CACHE=str(file))
    assert f"STOWPLAN_COMPILE_CACHE={file} cannot be written to" in found.stderr
    assert found.stdout.startswith("0 0 ")
