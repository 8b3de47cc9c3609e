"""Budgets: what people write, exactly; what is free; and lines through peaks."""

from __future__ import annotations

import os
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stowplan import host_memory
from stowplan.errors import BudgetError
from stowplan.host_memory import free_host_bytes
from stowplan.memory import (
    parse_bytes,
    resolve_budget,
    scratch_folder,
    show_bytes,
)
from stowplan.peaks import PeakModel, fit_peak

GIB = 2**30


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("7B", 7),
        (" 300 MB ", 300_000_000),
        ("4 GiB", 4 * 2**30),
        ("4gib", 4 * 2**30),
        ("2 KiB", 2048),
        ("2 kB", 2000),
        ("1.5MB", 1_500_000),
        ("0.5 KiB", 512),
        ("3 TiB", 3 * 2**40),
        ("3 TB", 3 * 10**12),
        (4096.0, 4096),
        (np.int64(12), 12),
    ],
)
def test_a_budget_is_read_in_every_unit(text, size):
    assert parse_bytes(text) == size


@given(st.integers(1, 10**40))
def test_no_byte_is_lost_to_rounding(size):
    assert parse_bytes(size) == size
    assert parse_bytes(f"{size} KiB") == 1024 * size


@pytest.mark.parametrize(
    "text",
    ["", "GiB", "4 XB", "4 GiBs", "-5", "1e9", ".5 GB", "4 GiB 3", None, True, "4,5 GB", "inf"],
)
def test_what_is_no_number_of_bytes_is_refused_with_examples(text):
    with pytest.raises(BudgetError, match=r"is no number of bytes. Write 4096, '300 MB', '4 GiB'"):
        parse_bytes(text)


@pytest.mark.parametrize("text", [0, "0 GiB", "0.0001 KiB", 0.8])
def test_less_than_one_byte_is_refused(text):
    with pytest.raises(BudgetError, match="less than one byte"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1000, "1000 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (2**20, "1 MiB"),
        (4.5 * 2**30, "4.5 GiB"),
        (2**40, "1 TiB"),
        (2**50, "1024 TiB"),
    ],
)
def test_bytes_are_shown_without_exponents(size, text):
    assert show_bytes(size) == text


def resolve(budget, free=23 * GIB, **environment):
    return resolve_budget(budget, lambda: free, "plan", environment=environment)


@given(st.integers(1, 10**30))
def test_bytes_are_a_budget_whatever_is_free(size):
    for given_as in (size, f"{size}", f"{size} B"):
        assert resolve(given_as, free=0).bytes == size
        assert resolve(given_as, STOWPLAN_BUDGET="1").bytes == size


@given(st.floats(0, 1, exclude_min=True), st.integers(0, 2**50))
def test_a_share_is_never_more_than_its_part_of_what_is_free(share, free):
    if share * free < 1:
        with pytest.raises(BudgetError, match=r"^plan: a budget of .* free on cpu is less than"):
            resolve(share, free=free)
        return
    found = resolve(share, free=free)
    assert isinstance(found.bytes, int)
    assert share * free - 1 <= found.bytes <= min(share * free, free)


@pytest.mark.parametrize(
    ("budget", "variable", "size", "source"),
    [
        ("4 GiB", "2 GiB", 4 * GIB, 'budget="4 GiB"'),
        (4096, "2 GiB", 4096, "budget=4096"),
        (0.5, "2 GiB", 10 * GIB, "0.5 of 20 GiB free on cuda:0"),
        (np.float32(0.5), "", 10 * GIB, "0.5 of 20 GiB free on cuda:0"),
        ("0.5", "", 10 * GIB, "0.5 of 20 GiB free on cuda:0"),
        (1.0, "", 20 * GIB, "1 of 20 GiB free on cuda:0"),
        (1, "", 1, "budget=1"),
        ("1", "", 1, 'budget="1"'),
        (None, "2GiB", 2 * GIB, "STOWPLAN_BUDGET=2GiB"),
        (None, " 0.25 ", 5 * GIB, "STOWPLAN_BUDGET=0.25: 0.25 of 20 GiB free on cuda:0"),
        (None, ".25", 5 * GIB, "STOWPLAN_BUDGET=.25: 0.25 of 20 GiB free on cuda:0"),
        (None, "", 16 * GIB, "0.8 of 20 GiB free on cuda:0"),
        (None, None, 16 * GIB, "0.8 of 20 GiB free on cuda:0"),
    ],
)
def test_the_argument_wins_then_the_environment_then_a_share(budget, variable, size, source):
    environment = {} if variable is None else {"STOWPLAN_BUDGET": variable}
    found = resolve_budget(
        budget, lambda: 20 * GIB, "plan", device="cuda:0", environment=environment
    )
    assert (found.bytes, found.source) == (size, source)
    assert str(found) == f"{show_bytes(size)} ({source})"


def test_the_environment_of_the_process_is_read(monkeypatch):
    monkeypatch.setenv("STOWPLAN_BUDGET", "3 GiB")
    assert resolve_budget(None, lambda: 0, "plan").bytes == 3 * GIB
    monkeypatch.delenv("STOWPLAN_BUDGET")
    assert resolve_budget(None, lambda: 10, "plan").bytes == 8


def test_what_is_free_is_asked_for_shares_alone():
    def refuse():
        raise AssertionError

    assert resolve_budget("4 GiB", refuse, "plan").bytes == 4 * GIB


@pytest.mark.parametrize("budget", [0, -1, 0.0, -0.5, True, "", "80%", "4 XB", [], "1.5", "nan"])
def test_what_is_no_budget_is_refused_by_name(budget):
    if budget == "1.5":  # no share, and more than one byte: rounded down as ever
        assert resolve(budget).bytes == 1
        return
    with pytest.raises(
        BudgetError, match=r"^plan: budget=.* is no budget\. Give bytes.*or a share"
    ):
        resolve(budget)
    for value in (1.5, float("nan"), float("inf")):
        if value != 1.5:
            with pytest.raises(BudgetError, match="is no budget"):
                resolve(value)


def test_the_variable_is_named_where_it_is_wrong():
    with pytest.raises(BudgetError, match=r"^plan: STOWPLAN_BUDGET=lots is no budget"):
        resolve(None, STOWPLAN_BUDGET="lots")
    with pytest.raises(BudgetError, match=r"STOWPLAN_BUDGET=0.5: 0.5 of 0 B free on cpu is less"):
        resolve(None, free=0, STOWPLAN_BUDGET="0.5")


def write(root, **files):
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(text))


@pytest.fixture
def root(tmp_path):
    """A system with 1000 KiB available and no control group."""
    write(tmp_path, proc__meminfo="MemTotal: 9000 kB\nMemFree: 10 kB\nMemAvailable:  1000 kB\n")
    return tmp_path


def test_what_the_kernel_calls_available_is_free(root):
    assert free_host_bytes(root) == 1000 * 1024


@pytest.mark.parametrize("path", ["/", "/user/job", "/elsewhere/job"])
@pytest.mark.parametrize("mount", ["sys/fs/cgroup", "sys/fs/cgroup/unified"])
def test_a_group_of_version_2_limits_it(root, mount, path):
    write(root, proc__self__cgroup=f"0::{path}\n")
    group = root / mount / ("user/job" if path == "/user/job" else "")
    group.mkdir(parents=True)
    (group / "memory.max").write_text("500000\n")
    (group / "memory.current").write_text("400000\n")
    assert free_host_bytes(root) == 100_000
    (group / "memory.stat").write_text("anon 1\ninactive_file 30000\nactive_file 7\n")
    assert free_host_bytes(root) == 130_000  # file pages not used lately are given back
    (group / "memory.max").write_text("max\n")
    assert free_host_bytes(root) == 1000 * 1024


def test_the_narrowest_of_all_ancestors_counts(root):
    write(root, proc__self__cgroup="3:cpu:/a\n0::/a/b/c\n")
    for name, left in (("", 900_000), ("a", 70_000), ("a/b", 80_000), ("a/b/c", 90_000)):
        write(root / "sys/fs/cgroup" / name, **{"memory.max": left + 5, "memory.current": 5})
    assert free_host_bytes(root) == 70_000
    write(root / "sys/fs/cgroup", **{"memory.max": 60_000, "memory.current": 5})
    assert free_host_bytes(root) == 59_995


@pytest.mark.parametrize("controllers", ["memory", "cpu,memory"])
def test_a_group_of_version_1_limits_it(root, controllers):
    write(root, proc__self__cgroup=f"9:name=systemd:/\n4:{controllers}:/job\n2:cpu:/\n0::/\n")
    group = root / "sys/fs/cgroup" / controllers / "job"
    write(group, **{"memory.limit_in_bytes": 50_000, "memory.usage_in_bytes": 20_000})
    assert free_host_bytes(root) == 30_000
    write(group, **{"memory.stat": "inactive_file 9\ntotal_inactive_file 1000\n"})
    assert free_host_bytes(root) == 31_000
    write(group, **{"memory.limit_in_bytes": 9223372036854771712})  # what version 1 calls none
    assert free_host_bytes(root) == 1000 * 1024


def test_a_group_beyond_its_limit_has_nothing_left(root):
    write(root, proc__self__cgroup="0::/\n")
    write(root / "sys/fs/cgroup", **{"memory.max": 10, "memory.current": 20})
    assert free_host_bytes(root) == 0


def test_without_proc_the_system_is_asked(tmp_path, monkeypatch):
    assert 0 < free_host_bytes(tmp_path) < 2**50
    known = {"SC_PHYS_PAGES": 10, "SC_PAGE_SIZE": 4096}

    def sysconf(name):
        if name in known:
            return known[name]
        raise ValueError

    monkeypatch.setattr(os, "sysconf", sysconf)
    assert free_host_bytes(tmp_path) == 40960
    known.clear()
    with pytest.raises(BudgetError, match="STOWPLAN_BUDGET"):
        free_host_bytes(tmp_path)


def test_some_memory_is_free_here():
    assert 0 < free_host_bytes() < 2**50


@given(
    st.integers(0, 10**15),
    st.one_of(st.integers(1, 10**12), st.floats(0.1, 1e12), st.fractions(Fraction(1, 9), 10**6)),
    st.integers(0, 10**18),
)
def test_rows_are_the_most_whose_peak_is_within_the_budget(fixed, each, budget):
    model = PeakModel(fixed, each, "test")
    rows = model.rows(budget)
    assert rows == 0 or model.peak(rows) <= budget
    assert model.peak(rows + 1) > budget


@given(st.integers(0, 10**12), st.integers(1, 10**9), st.sets(st.integers(1, 10**6), min_size=2))
def test_a_line_is_found_again_from_its_points(fixed, each, rows):
    rows = sorted(rows)
    model = fit_peak(rows, [fixed + each * count for count in rows], "probes")
    assert (model.fixed_bytes, model.bytes_per_row, model.source) == (fixed, each, "probes")


@given(st.lists(st.integers(1, 10**9), min_size=3, max_size=3))
def test_no_probe_lies_above_the_model(peaks):
    peaks = sorted(peaks)
    if peaks[0] == peaks[-1]:
        peaks[-1] += 1
    model = fit_peak([4, 8, 12], peaks, "probes")
    assert all(model.peak(rows) >= peak for rows, peak in zip([4, 8, 12], peaks, strict=True))


def test_peaks_of_fewer_rows_lift_the_line_and_turn_it_not():
    model = fit_peak([8, 16, 24], [80, 160, 240], "probes", smaller={1: 15, 4: 41})
    assert (model.fixed_bytes, model.bytes_per_row, model.source) == (5, 10, "probes")


def test_peaks_off_a_line_are_followed_from_above_and_said():
    model = fit_peak([1, 2, 3], [100, 110, 220], "probes")
    assert (model.fixed_bytes, model.bytes_per_row) == (0, 110)
    assert model.source == "probes, off a line by 45.5%"
    assert fit_peak([1, 2, 3], [1000, 1010, 1025], "probes").source == "probes"


@pytest.mark.parametrize(("fixed", "each"), [(-1, 1), (0, 0), (0, -4), (0, float("nan"))])
def test_a_peak_that_is_none_is_refused(fixed, each):
    with pytest.raises(BudgetError, match=r"peak=\(fixed_bytes, bytes_per_row\)"):
        PeakModel(fixed, each, "by hand")


def test_temporary_files_go_where_the_call_or_else_the_environment_says(tmp_path):
    named = {"STOWPLAN_SCRATCH": str(tmp_path)}
    assert scratch_folder(None, "run", environment=named) == tmp_path
    assert scratch_folder(tmp_path / "..", "run", environment=named) == tmp_path / ".."
    assert scratch_folder(None, "run", environment={}).is_dir()


@pytest.mark.parametrize("scratch", [None, "there/is/none", "file"])
def test_a_scratch_folder_that_is_none_is_named(tmp_path, scratch):
    (tmp_path / "file").touch()
    given = None if scratch is None else tmp_path / scratch
    with pytest.raises(BudgetError, match=r"run: (scratch=|STOWPLAN_SCRATCH=).*no folder"):
        scratch_folder(given, "run", environment={"STOWPLAN_SCRATCH": str(tmp_path / "gone")})


def test_large_blocks_lie_apart_until_the_last_caller_leaves(monkeypatch):
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    options = []
    monkeypatch.setattr(
        host_memory,
        "_from_libc",
        lambda name: lambda *option: options.append(option) or 1,
    )
    monkeypatch.setattr(host_memory, "_take_gaps", list)
    first, second = host_memory.large_blocks_apart(), host_memory.large_blocks_apart()
    first.__enter__()
    second.__enter__()
    while_both = len(options)
    first.__exit__(None, None, None)
    assert len(options) == while_both
    second.__exit__(None, None, None)
    assert len(options) > while_both


GAPS = """
import threading
import numpy as np
from stowplan import host_memory

def settle():
    with host_memory.large_blocks_apart():
        pass  # beyond, blocks of less than 32 MiB lie in the heap
    blocks = [np.ones(2**18) for _ in range(16)]  # of 2 MiB
    del blocks[::2]
    host_memory.give_back_host()
    with host_memory.large_blocks_apart():
        before = host_memory.resident_host_bytes()
        for size in (2**21, 2**20, 2**17):
            block = np.ones(size // 8)
            assert host_memory.resident_host_bytes() - before >= size - 2**16, size
            del block
            print(host_memory.resident_host_bytes() - before)

settle()
thread = threading.Thread(target=settle)
thread.start()
thread.join()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="resident sizes are read from /proc")
def test_large_blocks_do_not_settle_in_gaps_of_the_heap():
    environment = {key: text for key, text in os.environ.items() if not key.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", GAPS], capture_output=True, text=True, check=True, env=environment
    )
    left = [int(line) for line in done.stdout.splitlines()]
    assert len(left) == 6
    assert max(left) < 2**16


FORKED = """
import os
import numpy as np
from stowplan.host_memory import resident_host_bytes

held = np.ones(2**23)  # 64 MiB
before = resident_host_bytes()
if os.fork() == 0:
    own = np.ones(2**22)
    more = resident_host_bytes() - before  # pages of the parent count as well
    os._exit(0 if 2**24 < more < 2**26 else 1)
assert os.wait()[1] == 0
assert abs(resident_host_bytes() - before) < 2**22
"""


@pytest.mark.skipif(sys.platform != "linux", reason="resident sizes are read from /proc")
def test_a_process_that_was_forked_is_measured_itself():
    subprocess.run([sys.executable, "-c", FORKED], check=True, timeout=60)
