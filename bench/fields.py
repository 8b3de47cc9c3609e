"""Power spectra of 48 fields on disk, 2.5 GB: stowplan, dask, cubed and loops of NumPy.

``python -m bench.fields``; see bench/README.md. Every pass is a process of its own that has loaded
what it needs; files are in the page cache before it (warm) or dropped from it (cold). Each round
shuffles the sides, since a disk may be slower for who comes after a long read. All sums must agree
to 1e-12 before anything is timed.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import math
import mmap
import os
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench.record import RESULTS, at_least, at_most, save, show
from bench.workers import ONE_THREAD, Worker, spread, start

COUNT, SHAPE, SPACING = 48, (8, 8, 8, 4, 4, 4, 100), 0.1
SMALL = 2, (8, 8, 8, 1, 1, 1, 4)  # what a side reads before it is timed: loads libraries
CORES = 2
ACCURACY = 1e-12
SHELLS = 8
BUDGETS = (120, 300, 1000)  # MB
ALLOWED = "500MB"  # of a task of cubed, enough for a field
DIRECT_CALLS, DIRECT_BYTES = 4, 2**20
COPY = "copy.zarr"  # for cubed, a chunk for each field
PACKAGES = ("scipy", "dask", "cubed", "zarr")
STATES = ("warm", "cold")
TIMES = "s: median (min-max)"
COLUMNS = ("side", f"warm {TIMES}", "CPU s", f"cold {TIMES}", "CPU s", "peak MB", "planned MB")
Function = Callable[[np.ndarray], np.ndarray]


def make_fields(folder: Path, count: int, shape: tuple[int, ...]) -> None:
    """Write fields as .npy files, and once more as one zarr array."""
    import zarr

    folder.mkdir()
    copy = zarr.create_array(
        folder / COPY, shape=(count, *shape), chunks=(1, *shape), dtype="complex128",
        compressors=None,
    )  # fmt: skip
    for number in range(count):
        parts = np.random.default_rng(number).normal(size=(*shape, 2))
        field = parts.view(np.complex128)[..., 0]
        np.save(folder / f"{number:02d}.npy", field)
        copy[number] = field


def files_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.npy"))


def shell_numbers() -> np.ndarray:
    """Number the shell of each mode, of the width of one mode."""
    n = np.fft.fftfreq(8, 1 / 8)
    length = np.sqrt(n[:, None, None] ** 2 + n[:, None] ** 2 + n**2)
    return np.rint(length).astype(int).ravel()


def summed(power: np.ndarray) -> np.ndarray:
    """Sum over shells, (8, 8, 8) -> (8,)."""
    return np.bincount(shell_numbers(), power.ravel(), SHELLS)


def by_numpy(field: np.ndarray) -> np.ndarray:
    """Power of each mode, (8, 8, 8, ...) -> (8, 8, 8)."""
    modes = np.fft.fftn(field, axes=(0, 1, 2), norm="ortho")
    return (modes.real**2 + modes.imag**2).sum(axis=tuple(range(3, field.ndim)))


def by_scipy(field: np.ndarray) -> np.ndarray:
    """The same by SciPy's transform and products of rows: the quickest we know without a plan."""
    import scipy.fft

    modes = scipy.fft.fftn(field, axes=(0, 1, 2), norm="ortho").view(float).reshape(8, 8, 8, -1)
    return np.vecdot(modes, modes)


class Side:
    """What reads all fields of a folder and gives their sums, (fields, shells)."""

    def __init__(self, folder: str, small: str) -> None:
        self.compiles: Counter[str] = Counter()
        self.folder = Path(small)
        self.compute()
        self.folder = Path(folder)
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far

    @property
    def files(self) -> list[Path]:
        return files_of(self.folder)

    def compute(self) -> np.ndarray | None:
        raise NotImplementedError

    def facts(self) -> dict[str, Any]:
        return {}


class Disk(Side):
    """A floor: all files into one buffer."""

    def compute(self) -> None:
        buffer = np.empty(self.files[0].stat().st_size, np.uint8)
        for path in self.files:
            with path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass


class DiskDirect(Side):
    """A floor: all files into one buffer past the page cache, as many calls in flight as pay."""

    def compute(self) -> None:
        size = self.files[0].stat().st_size
        buffer = memoryview(mmap.mmap(-1, -(-size // DIRECT_BYTES) * DIRECT_BYTES))
        with ThreadPoolExecutor(DIRECT_CALLS) as pool:
            for path in self.files:
                descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)

                def read(place: int, descriptor: int = descriptor) -> int:
                    return os.preadv(descriptor, [buffer[place : place + DIRECT_BYTES]], place)

                found = sum(pool.map(read, range(0, size, DIRECT_BYTES)))
                os.close(descriptor)
                if found != size:
                    raise SystemExit(f"{path}: {found} bytes read of {size}")


class Kernel(Side):
    """A floor: the kernel on one field in memory, as often as there are fields."""

    def __init__(self, folder: str, small: str) -> None:
        from stowplan.kernels.fields import spectrum

        self.kernel = partial(spectrum, spacing=SPACING, width=2 * math.pi / (8 * SPACING))
        self.field = np.load(files_of(Path(folder))[0])
        super().__init__(folder, small)

    def compute(self) -> None:
        for _ in self.files:
            self.kernel(self.field.reshape(8, 8, 8, -1))


class Loop(Side):
    """One field after another."""

    def __init__(self, function: Function, folder: str, small: str) -> None:
        self.function = function
        super().__init__(folder, small)

    def compute(self) -> np.ndarray:
        return np.array([summed(self.function(np.load(path))) for path in self.files])


class ReadAhead(Loop):
    """One field is computed while a thread reads the next."""

    def compute(self) -> np.ndarray:
        found = []
        with ThreadPoolExecutor(1) as reader:
            ahead = reader.submit(np.load, self.files[0])
            for number in range(len(self.files)):
                field = ahead.result()
                if number + 1 < len(self.files):
                    ahead = reader.submit(np.load, self.files[number + 1])
                found.append(summed(self.function(field)))
                del field
        return np.array(found)


class DaskArray(Side):
    """dask.array on threads, a block for each file."""

    def compute(self) -> np.ndarray:
        import dask
        import dask.array as da

        shape = np.load(self.files[0], mmap_mode="r").shape
        load = dask.delayed(np.load, pure=False)
        blocks = [da.from_delayed(load(path), shape, np.complex128) for path in self.files]
        modes = da.fft.fftn(da.stack(blocks), axes=(1, 2, 3), norm="ortho")
        power = (modes.real**2 + modes.imag**2).sum(axis=(4, 5, 6, 7))
        with dask.config.set(scheduler="threads", num_workers=CORES):
            return np.array([summed(each) for each in power.compute()])


class DaskDelayed(Loop):
    """dask.delayed on threads, one function for each file."""

    def compute(self) -> np.ndarray:
        import dask

        def of_file(path: Path) -> np.ndarray:
            return summed(self.function(np.load(path)))

        tasks = [dask.delayed(of_file, pure=False)(path) for path in self.files]
        with dask.config.set(scheduler="threads", num_workers=CORES):
            return np.array(dask.compute(*tasks))


class DaskDistributed(DaskDelayed):
    """The same on a cluster of threads in this process, which is there before."""

    def __init__(self, function: Function, folder: str, small: str) -> None:
        from distributed import Client

        self.client = Client(
            processes=False, n_workers=1, threads_per_worker=CORES, dashboard_address=None
        )
        super().__init__(function, folder, small)

    def compute(self) -> np.ndarray:
        def of_file(path: Path) -> np.ndarray:
            return summed(self.function(np.load(path)))

        return np.array(self.client.gather(self.client.map(of_file, self.files, pure=False)))


class Cubed(Loop):
    """cubed on threads, one function for each chunk of a zarr array."""

    def compute(self) -> np.ndarray:
        import cubed
        from cubed.runtime.executors.local import ThreadsExecutor

        def of_chunk(chunk: np.ndarray) -> np.ndarray:
            return summed(self.function(chunk[0]))[None]

        with tempfile.TemporaryDirectory(dir=self.folder) as work:
            spec = cubed.Spec(work, allowed_mem=ALLOWED, executor=ThreadsExecutor())
            fields = cubed.from_zarr(str(self.folder / COPY), spec=spec)
            sums = cubed.map_blocks(
                of_chunk, fields, dtype=np.float64,
                chunks=((1,) * fields.shape[0], (SHELLS,)), drop_axis=list(range(2, fields.ndim)),
            )  # fmt: skip
            self.planned = sums.plan().max_projected_mem
            return np.asarray(sums.compute(max_workers=CORES))

    def facts(self) -> dict[str, Any]:
        return {"planned_bytes": int(self.planned)}


class Stowplan(Side):
    """Ours, planned and run."""

    def __init__(self, budget: int, folder: str, small: str) -> None:
        self.budget = budget
        super().__init__(folder, small)

    def compute(self) -> np.ndarray:
        from stowplan.recipes import fields

        found = fields.spectrum(
            str(self.folder / "*.npy"), spacing=SPACING, on="numpy", budget=self.budget
        )
        self.plan = found.plan
        return np.array([each.sums for each in found.each])

    def facts(self) -> dict[str, Any]:
        memory = self.plan.memory
        return {
            "budget_bytes": self.budget, "planned_bytes": memory.peak_bytes,
            "read_bytes": memory.read_bytes, "batches": len(self.plan.batches),
        }  # fmt: skip


DISK, DIRECT, KERNEL = "floor: disk", "floor: disk, direct", "floor: kernel"
LOOP, DASK, CUBED = "NumPy loop", "dask.array", "cubed"
OURS = tuple(f"stowplan, {budget} MB" for budget in BUDGETS)
SIDES: dict[str, Callable[[str, str], Any]] = {
    DISK: Disk,
    DIRECT: DiskDirect,
    KERNEL: Kernel,
    LOOP: partial(Loop, by_numpy),
    "NumPy, a thread reads ahead": partial(ReadAhead, by_numpy),
    DASK: DaskArray,
    "dask.delayed": partial(DaskDelayed, by_numpy),
    "dask.delayed, SciPy": partial(DaskDelayed, by_scipy),
    "dask.distributed": partial(DaskDistributed, by_numpy),
    CUBED: partial(Cubed, by_numpy),
    "cubed, SciPy": partial(Cubed, by_scipy),
    **{name: partial(Stowplan, int(mb * 1e6)) for name, mb in zip(OURS, BUDGETS, strict=True)},
}
DEFAULT = [name for name in SIDES if name != "dask.distributed"]
FLOORS = (DISK, DIRECT, KERNEL)


def data_of(name: str, folder: Path) -> list[Path]:
    """List the files that a side reads."""
    if name.startswith("cubed"):
        return [path for path in (folder / COPY).rglob("*") if path.is_file()]
    return files_of(folder)


def cached_share(paths: Sequence[Path]) -> float:
    """Say which share of some files is in the page cache."""
    libc = ctypes.CDLL("libc.so.6", use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    held = pages = 0
    for path in paths:
        size = path.stat().st_size
        with path.open("rb") as file:
            address = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
        flags = np.zeros(-(-size // mmap.PAGESIZE), np.uint8)
        if libc.mincore(
            ctypes.c_void_p(address), ctypes.c_size_t(size), flags.ctypes.data_as(ctypes.c_void_p)
        ):
            raise OSError(ctypes.get_errno(), f"mincore: {path}")
        libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(size))
        held, pages = held + int((flags & 1).sum()), pages + len(flags)
    return held / pages


def bring(state: str, paths: Sequence[Path]) -> float:
    """Read files into the page cache, or drop them; give the share that is there."""
    for path in paths:
        with path.open("rb", buffering=0) as file:
            if state == "warm":
                while file.read(1 << 24):
                    pass
            else:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return cached_share(paths)


def measure(
    folder: Path, small: Path, names: list[str], rounds: int
) -> tuple[dict[str, Any], dict[str, str]]:
    """Passes of all sides in turn, warm and cold; each in a process of its own."""
    order = random.Random(0)
    records: dict[str, dict[str, Any]] = {
        name: {state: {"wall": [], "cpu": [], "rise_bytes": [], "cached": []} for state in STATES}
        for name in names
    }
    worker = Worker(LOOP, partial(SIDES[LOOP], str(folder), str(small)))
    reference, _ = worker("compute")
    worker.stop()
    sides = {name: partial(SIDES[name], str(small), str(small)) for name in names}
    able, failed = start(sides)
    for worker in able.values():
        worker.stop()
    records = {name: records[name] for name in able}
    for turn in range(rounds + 1):  # the first is not timed
        for state in STATES if turn else ("warm",):
            for name in order.sample(list(records), len(records)):
                cached = bring(state, data_of(name, folder))
                worker = Worker(name, partial(SIDES[name], str(folder), str(small)))
                sums, (wall, cpu) = worker("compute")
                rise = worker.peak_mb * 2**20
                records[name]["facts"], _ = worker("facts")
                worker.stop()
                if name not in FLOORS:
                    records[name]["error"] = check(name, sums, reference)
                if turn:
                    one = records[name][state]
                    for key, found in zip(one, (wall, cpu, rise, cached), strict=True):
                        one[key].append(found)
                    print(f"{name}, {state}: {wall:.2f} s, {cpu:.2f} CPU-s, {rise / 1e6:.0f} MB, "
                          f"{100 * cached:.0f} % cached", flush=True)  # fmt: skip
    for record in records.values():
        for state in STATES:
            record[state] = {key: spread(found) for key, found in record[state].items()}
    return records, failed


def check(name: str, sums: np.ndarray, reference: np.ndarray) -> float:
    """Give the largest relative error of a sum; stop where it is too large."""
    error = float(np.abs(sums / reference - 1).max())
    if not error <= ACCURACY:
        raise SystemExit(f"{name} is off by {error:.1e}, more than {ACCURACY}")
    return error


def judge(records: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What was measured beside its targets."""

    for name in (name for name in OURS if name in records):
        record = records[name]
        facts = record["facts"]
        for state in STATES:
            wall = record[state]["wall"]["median"]
            for peer, least in ((DASK, 2.5), (CUBED, 2.0)):
                if peer in records:
                    ratio = records[peer][state]["wall"]["median"] / wall
                    yield at_least(f"{state}: {peer} over {name}", ratio, least)
            if set(FLOORS) <= set(records):
                walls = {each: records[each][state]["wall"]["median"] for each in FLOORS}
                floor = max(min(walls[DISK], walls[DIRECT]), walls[KERNEL])
                yield at_most(f"{state}: {name} over the floors", wall / floor, 1.3)
        rises = [record[state]["rise_bytes"] for state in STATES]
        most = max(rise["max"] for rise in rises)
        budget, planned = facts["budget_bytes"], facts["planned_bytes"]
        yield at_most(f"{name}: peak in MB, its budget", most / 1e6, budget / 1e6)
        yield at_most(f"{name}: measured over planned", most / planned, 1)
        median = max(rise["median"] for rise in rises)
        yield at_most(f"{name}: planned over measured", planned / median, 1.25)


def table(records: dict[str, Any]) -> str:
    """Markdown: one line per side."""
    lines = [
        f"| {' | '.join(COLUMNS)} |",
        "|" + "---|" * len(COLUMNS),
    ]
    for name, record in records.items():
        cells = [name]
        for state in STATES:
            wall = record[state]["wall"]
            cells.append(f"{wall['median']:.2f} ({wall['min']:.2f}-{wall['max']:.2f})")
            cells.append(f"{record[state]['cpu']['median']:.2f}")
        cells.append(f"{max(record[state]['rise_bytes']['max'] for state in STATES) / 1e6:.0f}")
        planned = record["facts"].get("planned_bytes")
        cells.append("" if planned is None else f"{planned / 1e6:.0f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="passes of each side, warm and cold")
    parser.add_argument("--sides", nargs="+", default=DEFAULT, choices=list(SIDES))
    parser.add_argument("--folder", type=Path, help="where the fields lie while it runs (5 GB)")
    parser.add_argument("--made", type=Path, help="a folder with fields of an earlier --keep")
    parser.add_argument("--keep", type=Path, help="make the fields there, and leave them")
    parser.add_argument("--out", type=Path, default=RESULTS / "fields.json")
    parser.add_argument("--check", action="store_true", help="fail if a target is missed")
    options = parser.parse_args()
    os.environ.update(ONE_THREAD)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    load = os.getloadavg()
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        held = options.made or options.keep or Path(temporary)
        folder, small = held / "fields", held / "small"
        if not options.made:
            held.mkdir(exist_ok=True)
            make_fields(folder, COUNT, SHAPE)
            make_fields(small, *SMALL)
            os.sync()
        records, failed = measure(folder, small, options.sides, options.rounds)
    verdicts = list(judge(records))
    print("\n" + table(records) + "\n")
    show(verdicts)
    figures = {"load_before": load, "sides": records, "not_run": failed}
    save("fields", figures, verdicts, PACKAGES, options.out)
    return int(options.check and not all(verdict["met"] for verdict in verdicts))


if __name__ == "__main__":
    sys.exit(main())
