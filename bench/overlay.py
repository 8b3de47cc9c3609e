"""Shape overlay of 100 molecule pairs: stowplan and shepherd-score on two cores.

``python -m bench.overlay``; see bench/README.md. The molecules are those that RDKit ships, about
their centres, so that all sides turn them about the same point. All climb from the identity and the
four ways to put principal axes onto each other; ours stop when the score does, theirs after 200
steps. The mean scores are compared before anything is timed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np

from bench.record import RESULTS, at_least, at_most, save, show
from bench.workers import Worker, count_compiles, peak_mb, spread, start

CORES = 2
STARTS = 5
SIZES = 100, 97, 98, 96  # pairs of a set, and of others right after it, each seen once
SLOTS = 3
BUCKETS = 8  # of the peer, where it is fastest
ACCURACY = 1e-3  # of the mean score, from the peer's
MANY, STARTS_OF_MANY, LIMIT = (500, 2000), 50, 2 << 30
PEER, CACHED = "shepherd-score, 8 buckets", "stowplan jax, cached compiles"
PACKAGES = ("jax", "torch", "rdkit", "shepherd-score")
SOURCES = (  # inside the folder of rdkit: files of SMILES, and how many molecules of each
    ("Data/NCI/first_5K.smi", 300),
    ("Contrib/SA_Score/data/zim.100.txt", 100),
    ("Contrib/fraggle/data/ChEMBL_11265_actives.smi", 90),
    ("Contrib/FreeWilson/data/CHEMBL2321810.smi", 110),
)


def embedded() -> dict[str, np.ndarray]:
    """Heavy atoms of molecules of 8 to 60 of them, evenly spaced in RDKit's files."""
    from rdkit import Chem, RDConfig, RDLogger
    from rdkit.Chem import AllChem

    RDLogger.DisableLog("rdApp.*")
    root = Path(RDConfig.RDDataDir).parent
    seen: set[str] = set()
    coordinates = []
    for name, wanted in SOURCES:
        found = []
        for line in (root / name).read_text().splitlines():
            for word in line.replace(",", " ").replace("\t", " ").split():
                molecule = Chem.MolFromSmiles(word) if "." not in word else None
                if molecule is not None and 8 <= molecule.GetNumHeavyAtoms() <= 60:
                    smiles = Chem.MolToSmiles(molecule)
                    if smiles not in seen:
                        seen.add(smiles)
                        found.append(smiles)
                    break
        picks = np.unique(np.linspace(0, len(found) - 1, wanted).round().astype(int))
        for smiles in (found[pick] for pick in picks.tolist()):
            molecule = Chem.AddHs(Chem.MolFromSmiles(smiles))
            parameters = AllChem.ETKDGv3()
            parameters.randomSeed = 0xF00D
            if AllChem.EmbedMolecule(molecule, parameters) == 0:
                points = Chem.RemoveHs(molecule).GetConformer().GetPositions()
                coordinates.append(points.astype(np.float32))
    return {
        "coords": np.concatenate(coordinates),
        "n": np.array([len(points) for points in coordinates]),
    }


def sets(path: str, number: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """References and molecules to move of a set, about their centres."""
    with np.load(path) as held:
        ends = np.cumsum(held["n"])
        molecules = np.split(held["coords"], ends[:-1])
    molecules = [points - points.mean(axis=0) for points in molecules]
    pairs = np.random.default_rng(0).integers(0, len(molecules), (2 * sum(SIZES), 2))
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]  # the peer fails on a molecule laid over itself
    begin = sum(SIZES[:number])
    chosen = pairs[begin : begin + SIZES[number]].tolist()
    return [molecules[i] for i, _ in chosen], [molecules[j] for _, j in chosen]


def shared_slots(path: str) -> Any:
    """Choose slots that hold the pairs of both sets."""
    import stowplan as sp

    pairs = [sets(path, number) for number in range(len(SIZES))]
    counts = np.array(
        [[len(a), len(b)] for refs, fits in pairs for a, b in zip(refs, fits, strict=True)]
    )
    sizes = {"n": counts.max(axis=1), "m": counts.min(axis=1)}
    return sp.choose_slots(sizes, SLOTS, work="n * m")


class Ours:
    """stowplan on one framework, on as many devices or workers as there are cores."""

    def __init__(self, path: str, on: str, cache: str | None = None) -> None:
        import stowplan as sp

        if cache is not None:
            sp.compile_cache(cache)
        self.path, self.on, self.slots = path, on, shared_slots(path)
        self.devices: Any = sp.devices(CORES, on=on) if on == "jax" else CORES
        self.compiles = count_compiles() if on == "jax" else Counter()

    def prepare(self, number: int) -> None:
        self.pairs = sets(self.path, number)

    def compute(self) -> np.ndarray:
        from stowplan.recipes import overlay

        self.found = overlay.align(
            *self.pairs, starts=STARTS, on=self.on, devices=self.devices, slots=self.slots
        )
        self.slots = self.found.plan.slots
        return self.found.score

    def facts(self) -> dict[str, Any]:
        plan = self.found.plan
        return {
            "padding": 1 / plan.occupancy("n * m"),
            "shapes": len(plan.slots),
            "steps": float(self.found.all_steps.sum() / (STARTS * len(self.found))),
        }


class Peer:
    """What MoleculePairBatch calls for its shard_map path, on as many virtual devices as cores."""

    def __init__(self, path: str) -> None:
        os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={CORES}"
        for name in ("open3d", "py3Dmol", "molscrub"):  # of surfaces and pictures, not of overlays
            if find_spec(name) is None:
                sys.modules[name] = MagicMock()
        from shepherd_score.container._batch_utils import _align_vol_shmap

        self.align, self.path = _align_vol_shmap, path
        self.compiles = count_compiles()

    def prepare(self, number: int) -> None:
        self.pairs = [(a, b, None) for a, b in zip(*sets(self.path, number), strict=True)]

    def compute(self) -> np.ndarray:
        found = self.align(self.pairs, CORES, STARTS, 0.1, 200, False, num_buckets=BUCKETS)
        return np.array([float(score) for score, _, _ in found])


def measure(
    path: str, names: list[str], rounds: int, cache: str
) -> tuple[dict[str, Any], dict[str, str]]:
    """Cold pass of every side, warm passes in turn, then a set of another size."""
    makers = {
        PEER: partial(Peer, path),
        "stowplan jax": partial(Ours, path, "jax"),
        "stowplan numpy": partial(Ours, path, "numpy"),
        "stowplan torch": partial(Ours, path, "torch"),
    }
    if "stowplan jax" in names:  # fills the cache, which the next process finds
        first = Worker("cache", partial(Ours, path, "jax", cache))
        first("prepare", 0)
        first("compute")
        first.stop()
        makers[CACHED] = partial(Ours, path, "jax", cache)
        names = [*names, CACHED]
    workers, failed = start({name: makers[name] for name in names})
    names = list(workers)
    records: dict[str, dict[str, Any]] = {name: {"warm": []} for name in names}
    scores = {}
    for name, worker in workers.items():
        worker("prepare", 0)
        scores[name], records[name]["cold"] = worker("compute")
        records[name]["compiles"] = worker.compiled
        records[name]["score"] = float(scores[name].mean())
        print(f"{name}: cold {records[name]['cold'][0]:.2f} s, "
              f"mean score {records[name]['score']:.5f}", flush=True)  # fmt: skip
    if PEER in names:
        for name in names:
            off = records[name]["score"] - records[PEER]["score"]
            if off < -ACCURACY:
                raise SystemExit(f"{name} scores {-off:.1e} less than {PEER}, more than {ACCURACY}")
    for _ in range(rounds):
        for name, worker in workers.items():
            records[name]["warm"].append(worker("compute")[1][0])
    for name, worker in workers.items():
        record = records[name]
        record["warm"] = spread([1e3 * wall / SIZES[0] for wall in record["warm"]])
        if name != PEER:
            record["facts"], _ = worker("facts")
        others, compiled = [], 0
        for number in range(1, 2 if name == PEER else len(SIZES)):  # it compiles for each
            worker("prepare", number)
            others.append(1e3 * worker("compute")[1][0] / SIZES[number])
            compiled += worker.compiled
        record["second"], record["compiles_second"] = spread(others), compiled
        record["peak_mb"] = worker.peak_mb
        worker.stop()
    return records, failed


def peak_of(path: str, count: int) -> dict[str, float]:
    """Align many pairs from many starts; what the process takes for it."""
    from stowplan.recipes import overlay

    with np.load(path) as held:
        molecules = np.split(held["coords"], np.cumsum(held["n"])[:-1])
    pairs = np.random.default_rng(0).integers(0, len(molecules), (count, 2))
    options = {"starts": STARTS_OF_MANY, "on": "numpy", "budget": LIMIT}
    overlay.align(molecules, pairs=pairs[:4], **options)
    before, start = peak_mb(), time.perf_counter()
    found = overlay.align(molecules, pairs=pairs, **options)
    seconds = time.perf_counter() - start
    return {
        "pairs": count, "rise_mb": peak_mb() - before, "ms_a_pair": 1e3 * seconds / count,
        "score": float(found.score.mean()),
    }  # fmt: skip


def judge(records: dict[str, Any], many: list[dict[str, float]]) -> Iterator[dict[str, Any]]:
    """Targets beside what was measured."""
    peer = records.get(PEER)
    for name, record in records.items():
        if name == PEER:
            continue
        if peer is not None:
            ratio = peer["warm"]["median"] / record["warm"]["median"]
            yield at_least(f"warm time of {PEER} over {name}", ratio, 5)
            least = 10 if name == CACHED else 5
            ratio = peer["cold"][0] / record["cold"][0]
            yield at_least(f"cold time of {PEER} over {name}", ratio, least)
        ratio = record["second"]["median"] / record["warm"]["median"]
        yield at_most(f"{name}: sets of another size over warm", ratio, 1.2)
        yield at_most(f"{name}: compiles for them", record["compiles_second"], 0)
    if many:
        few, more = many[0], many[-1]
        steady = (more["rise_mb"] - few["rise_mb"]) / (more["pairs"] - few["pairs"])
        whole = more["rise_mb"] + steady * (100_000 - more["pairs"])
        yield at_most("100 000 pairs at 50 starts in MiB", whole, 2048)


def table(records: dict[str, Any]) -> str:
    lines = [
        "| side | mean score | cold s | warm ms a pair: median (min-max) | other size | compiles |",
        "|---|---|---|---|---|---|",
    ]
    for name, r in records.items():
        warm = r["warm"]
        lines.append(
            f"| {name} | {r['score']:.5f} | {r['cold'][0]:.2f} | {warm['median']:.2f} "
            f"({warm['min']:.2f}-{warm['max']:.2f}) | {r['second']['median']:.2f} | "
            f"{r['compiles']} + {r['compiles_second']} |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    sides = [PEER, "stowplan jax", "stowplan numpy", "stowplan torch"]
    parser.add_argument("--rounds", type=int, default=5, help="warm passes of each side")
    parser.add_argument("--sides", nargs="+", default=sides, choices=sides)
    parser.add_argument("--molecules", help="npz with coords and n, instead of embedding them")
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RESULTS / "overlay.json")
    parser.add_argument("--check", action="store_true", help="fail if a target is missed")
    options = parser.parse_args()
    if options.peak:
        print(json.dumps(peak_of(options.molecules, options.peak)))
        return 0
    os.environ.pop("XLA_FLAGS", None)  # two cores, for all sides
    with tempfile.TemporaryDirectory() as folder:
        path = options.molecules or str(Path(folder) / "molecules.npz")
        if not options.molecules:
            np.savez(path, **embedded())
        records, failed = measure(
            path, options.sides, options.rounds, str(Path(folder) / "compiled")
        )
        many = []
        for count in MANY:
            command = [sys.executable, "-m", "bench.overlay", "--molecules", path]
            command += ["--peak", str(count)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            many.append(json.loads(done.stdout.splitlines()[-1]))
            print(many[-1], flush=True)
    verdicts = list(judge(records, many))
    print(table(records))
    show(verdicts)
    figures = {"sides": records, "many": many, "not_run": failed}
    save("overlay", figures, verdicts, PACKAGES, options.out)
    return int(options.check and not all(verdict["met"] for verdict in verdicts))


if __name__ == "__main__":
    sys.exit(main())
