"""A program that test_resume.py starts: jobs in children that are killed at random moments.

``python killed_jobs.py JOB FOLDER KILLS SEED`` prints how often a child was killed.
"""

from __future__ import annotations

import os
import random
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import stowplan as sp
from stowplan.recipes import fields
from stowplan.runs import load_budgets, streaming

SECONDS = 0.012
LOG: list[Path] = []
"""Where kernels that are iterated note what they compute."""


def logged(folder: Path, items: list[int]) -> None:
    """Note which items are computed, in one piece, and take some time."""
    descriptor = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(descriptor, f"{','.join(map(str, items))}\n".encode())
    os.close(descriptor)
    time.sleep(SECONDS)


@sp.kernel("(n,2),()->(n),()", ragged="n", fill={"x": 0.0})
def weighed(x, weight):
    rows = (x * weight[..., None, None]).sum(axis=-1)
    return rows, np.sqrt((rows * rows).sum(axis=-1))


@sp.kernel("(n)->()", ragged="n", fill={"x": 0.0})
def halve(x, *, age, state):
    if len(x) and LOG:
        logged(LOG[0], [int(x[0, 0])])
    return {"s": (state["s"] + x.sum(axis=-1)) / 2, "n": state["n"] - 1}


def make(folder: Path) -> None:
    """Write the data."""
    rng = np.random.default_rng(1)
    sizes = rng.integers(1, 9, 90)
    np.save(folder / "sizes.npy", sizes)
    np.save(folder / "x.npy", rng.normal(size=(sizes.sum(), 2)))
    np.save(folder / "weights.npy", rng.normal(size=90))
    for number in range(24):
        field = rng.normal(size=(8, 4, 4, 3))
        np.save(folder / f"field{number:02d}.npy", field - field.mean(axis=(0, 1, 2)))


def ragged_data(folder: Path) -> list[Any]:
    sizes = np.load(folder / "sizes.npy")
    x = np.load(folder / "x.npy")
    return [sp.Ragged(x, sizes).map_values(lambda _: folder / "x.npy"), folder / "weights.npy"]


def memory(folder: Path, resume: Any) -> list[np.ndarray]:
    rows, norms = sp.run(weighed, ragged_data(folder), rows=1, resume=resume)
    return [rows.compact().values, norms]


def files(folder: Path, resume: Any) -> list[np.ndarray]:
    name = "killed" if resume else "whole"
    out = [folder / f"{name}-rows.npy", folder / f"{name}-norms.npy"]
    sp.run(weighed, ragged_data(folder), rows=1, out=out, resume=resume, overwrite=True)
    return [np.load(path) for path in out]


def iterate(folder: Path, resume: Any) -> list[np.ndarray]:
    x = sp.Ragged.from_list([np.arange(float(n), n + 3) for n in range(40)])
    found = sp.iterate(
        halve, [x], rows=1, resume=resume, every=2, limit=4, keep=("s",),
        init=lambda x: {"s": x.sum(axis=-1), "n": 0 * x[..., 0] + 4},
        until=lambda state: (state["n"] <= 0, state["n"] > 100),
    )  # fmt: skip
    return [found.values["s"], found.iterations]


def norm(stack: np.ndarray) -> np.ndarray:
    return np.sqrt((stack**2).sum(axis=(1, 2, 3)))


def batch(folder: Path, resume: Any) -> list[np.ndarray]:
    with sp.FieldBatch(budget=24_000, scratch=folder) as fields:
        for path in sorted(folder.glob("field*.npy")):
            fields.add(path)
        return [np.asarray(fields.run(norm, resume=resume))]


def solve(folder: Path, resume: Any) -> list[np.ndarray]:
    out = folder / ("killed.npy" if resume else "whole.npy")
    fields.solve(
        str(folder / "field*.npy"), spacing=0.5, out=out, resume=resume, overwrite=True,
        budget=200_000, rows=1,
    )  # fmt: skip
    return [np.load(out)]


def solve_one_by_one(folder: Path, resume: Any) -> list[np.ndarray]:
    own, load_budgets.most_together = load_budgets.most_together, lambda *_: 1
    try:
        return solve(folder, resume)
    finally:
        load_budgets.most_together = own


JOBS = {job.__name__: job for job in (memory, files, iterate, batch, solve, solve_one_by_one)}


def child(job: str, folder: Path) -> None:
    own = streaming._Stream._computed

    def computed(self: Any, part: Any) -> Any:
        if len(part.items):
            logged(folder, part.items.tolist())
        return own(self, part)

    streaming._Stream._computed = computed
    LOG.append(folder)
    found = JOBS[job](folder, folder / "run")
    np.savez(folder / "found.npz", *found)


def main() -> None:
    job, folder, kills, seed = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    make(folder)
    np.savez(folder / "wanted.npz", *JOBS[job](folder, None))
    if (folder / "log").exists():
        (folder / "log").unlink()
    moments = random.Random(seed)
    done = 0
    while True:
        pid = os.fork()
        if not pid:
            try:
                child(job, folder)
            except BaseException:  # noqa: BLE001  a child must not go on as its parent
                import traceback

                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        ended = os.pidfd_open(pid)
        wait = moments.uniform(0.01, 0.1) if done < kills else 60
        over = select.select([ended], [], [], wait)[0]
        os.close(ended)
        if not over:
            os.kill(pid, signal.SIGKILL)
            done += 1
        status = os.waitpid(pid, 0)[1]
        if over:
            assert status == 0, f"{job}: the job ended with {status}"
            break
    print(done)


if __name__ == "__main__":
    main()
