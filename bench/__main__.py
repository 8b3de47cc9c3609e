"""All benchmarks one after the other, then the pages: ``python -m bench [NAME ...] [--check]``.

Each is a process of its own, ``python -m bench.NAME``. One that fails does not stop the others.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time

from bench.record import RESULTS, versions
from bench.workers import ONE_THREAD

RECIPES: dict[str, list[str]] = {  # in the order in which they run, with options
    "ewald": ["--rounds", "5"],
    "bragg": ["--no-compile", "--rounds", "2"],
    "overlay": [],
    "fields": ["--rounds", "3"],
    "transport": [],
}
OTHERS: dict[str, list[str]] = {
    "slots": [],
    "overhead": [],
    "planning": [],
    "gather": [],
    "chunked_gradients": [],
    "recovery": [],
    "growth": [],
    "floors": [],
    "predictions": [],
    "devices": [],
    "processes": [],
    "predecessors": [],
    "cuda": [],  # where there is such a device
}
ON_REQUEST: dict[str, list[str]] = {"memory": []}  # a quarter of an hour by itself
PEERS = (
    "jax-pme", "torch-pme", "shepherd-score", "ott-jax", "POT", "netket", "dask", "cubed",
    "accelerate", "toma",
)  # fmt: skip


def run(name: str, options: list[str]) -> int:
    """Run one benchmark; give its exit status."""
    start = time.perf_counter()
    print(f"\n== {name} {' '.join(options)}", flush=True)
    done = subprocess.run(
        [sys.executable, "-m", f"bench.{name}", *options],
        env={**os.environ, **ONE_THREAD}, check=False,
    )  # fmt: skip
    state = "done" if done.returncode == 0 else f"FAILED (exit status {done.returncode})"
    print(f"== {name}: {state} after {time.perf_counter() - start:.0f} s", flush=True)
    return done.returncode


def main() -> int:
    every = {**RECIPES, **OTHERS, **ON_REQUEST}
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME",
                        help=", ".join(every))  # fmt: skip
    parser.add_argument("--check", action="store_true", help="fail if a target is missed")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in every]
    if unknown:
        parser.error(f"there is no benchmark {unknown[0]!r}. There are {', '.join(every)}.")
    names = options.names or [*RECIPES, *OTHERS]
    start = time.perf_counter()
    for peer, version in versions(PEERS).items():
        print(f"{peer}: {version}")
    print(", ".join(f"{key}={value}" for key, value in ONE_THREAD.items()))
    failed = [name for name in names if run(name, every[name])]
    if run("pages", []):
        failed.append("pages")
    print(f"\nAll took {(time.perf_counter() - start) / 60:.0f} minutes.")
    missed = 0
    for name in names:
        path = RESULTS / f"{name}.json"
        targets = json.loads(path.read_text(encoding="utf-8"))["targets"] if path.exists() else []
        for each in targets:
            if not each["met"]:
                missed += 1
                print(f"MISSED {name}: {each['target']}: {each['value']:.4g}")
    if failed:
        print(f"Failed: {', '.join(failed)}.")
    return int(bool(failed) or (options.check and missed > 0))


if __name__ == "__main__":
    sys.exit(main())
