"""Planted faults: `python -m nox -s mutants` puts each into a copy of the source and tests it.

Every fault must be caught, by the tests of its own file if there are any, or else by others.
`-- stores fourier` plants those of some files alone.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTS = [
    "tests/test_gather.py", "tests/test_ragged.py", "tests/test_vectors.py",
    "tests/test_interpolation.py", "tests/planners", "tests/runs",
    "tests/recipes/test_transport_frames.py", "tests/recipes/test_transport_points.py",
    "tests/recipes/test_transport.py", "tests/recipes/test_transport_batches.py",
]  # fmt: skip

OWN_TESTS = {
    "fourier.py": "tests/test_fourier.py",
    "gather.py": "tests/test_gather.py",
    "interpolation.py": "tests/test_interpolation.py",
    "reports/": "tests/reports",
    "runs/measurement.py": "tests/runs/test_measurement.py",
    "runs/sampled_batches.py": "tests/runs/test_measurement.py",
    "runs/pace.py": "tests/runs/test_loads_together.py",
    "runs/streaming.py": "tests/runs/test_loads_together.py",
    "runs/round_bytes.py": "tests/runs/test_round_bytes.py",
    "special.py": "tests/test_special.py",
    "host_memory.py": "tests/stores/test_direct.py",
    "stores/": "tests/stores",
    "vectors.py": "tests/test_vectors.py",
}

# file, what stands there, what is planted: off by one, or a step left out
MUTANTS = [
    ("gather.py", "place < shapes[:, dim][:, None]", "place <= shapes[:, dim][:, None]"),
    ("gather.py", "place < shapes[:, dim][:, None]", "place < shapes[:, dim][:, None] - 1"),
    ("gather.py", "(place >= 0) & held", "held"),
    ("gather.py", "place - offsets[:, dim][:, None]", "place - offsets[:, 0][:, None]"),
    ("gather.py", "index = index + starts[", "index = index + 1 + starts["),
    ("gather.py", "return xp.where(inside_all(masks), index, elsewhere)", "return index"),
    ("gather.py", "xp.full_like(starts[:1], padding)", "xp.full_like(starts[:1], padding - 1)"),
    ("gather.py", "if inside is not None:\n        inside", "if False:\n        inside"),
    ("gather.py", "flat[~inside] = fill", "flat[inside] = fill"),
    ("gather.py", "mask[:count] for mask", "mask[: count + 1] for mask"),
    ("gather.py", "mask[:count] for mask", "mask[: max(count - 1, 0)] for mask"),
    ("gather.py", "np.cumsum(stored) - stored", "np.cumsum(stored)"),
    ("gather.py", "np.repeat(offsets, counts) + within",
     "np.repeat(offsets, counts) + within[::-1]"),
    ("layout.py", "packed = np.cumsum(counts) - counts", "packed = np.cumsum(counts) - counts + 1"),
    ("planners/fitting.py", "else columns[name] <= most", "else columns[name] < most"),
    ("planners/fitting.py", "else columns[name] <= most", "else columns[name] <= most + 1"),
    ("planners/fitting.py", "columns[name] == most if exact", "columns[name] <= most if exact"),
    ("planners/fitting.py", ".max(axis=0, initial=1)", ".max(axis=0, initial=2)"),
    ("planners/batches.py", "short = -count % rows", "short = -count % rows and 1"),
    ("planners/batches.py", "min(rows, count - start)", "min(rows, count - start + 1)"),
    ("planners/batches.py", "range(0, count, rows)", "range(0, count - 1, rows)"),
    ("planners/batches.py", "np.full(short, items[-1])", "np.full(short, items[-1] + 1)"),
    ("planners/slots.py", "choice[left] = fitter.first_fit(added, left) + len(limits)",
     "choice[left] = fitter.first_fit(added, left) + len(limits) - 1"),
    ("planners/offsets.py", "(table[items] > most)", "(table[items] > most + 1)"),
    ("planners/offsets.py", "(table[items] < 0) | ", ""),
    ("planners/buckets.py", 'order="cheapest"', 'order="given"'),
    ("planners/grids.py", "(place >= 0) & (place < length)", "(place < length)"),
    ("planners/grids.py", "inside & self.inside", "inside | self.inside"),
    ("planners/saved.py", 'offsets=arrays.get("offsets")', "offsets=None"),
    ("planners/chunks.py", "batch.items[: batch.count]", "batch.items[: batch.count + 1]"),
    ("planners/shards.py", "device = int(np.argmin(done))", "device = int(np.argmin(busy * 0))"),
    ("planners/shards.py", "np.lexsort((-seconds, first))", "np.lexsort((seconds, first))"),
    ("planners/shards.py", "-(-len(group[0].items) // devices) * devices", "len(group[0].items)"),
    ("planners/shards.py", "batch.items[: batch.count]", "batch.items"),
    ("planners/shards.py", "items[place :: len(takers)]", "items[place + 1 :: len(takers)]"),
    ("planners/shards.py", "shapes.sum() * costs.compile_seconds", "costs.compile_seconds"),
    ("planners/saved.py", "header.get(name, default)", "default"),
    ("planners/residency.py", "heap[0] < nearer", "True"),
    ("planners/residency.py", "missing + self.sizes[item] <= 0", "missing + self.sizes[item] < 0"),
    ("planners/residency.py", "missing + self.sizes[item] <= 0", "False"),
    ("planners/residency.py", "for item in chosen[::-1]:", "for item in chosen[:]:"),
    ("planners/residency.py", "self.last[item] + 1 if source == 0",
     "self.last[item] if source == 0"),
    ("planners/residency.py", "self.last[item] + 1 if source == 0", "self.step if source == 0"),
    ("planners/residency.py", "or item in self.unsaved\n", "or True\n"),
    ("planners/residency.py", "self.unsaved.remove(item)", "pass"),
    ("planners/residency.py", "            for item in chosen:\n                self._rank(item)\n",
     ""),
    ("planners/residency.py", "np.maximum.accumulate(earliest)", "earliest"),
    ("planners/residency.py", "-self.due[item], item in", "self.due[item], item in"),
    ("planners/residency.py", "(MAKE, item, source, 0, self.step)", "(MAKE, item, source, 0, 0)"),
    ("planners/timeline.py", "(target < disk) | (kind == WRITE)", "target < disk"),
    ("planners/timeline.py", "(source < disk) & (kind != WRITE)", "(source < disk)"),
    ("planners/orders.py", "left = others[::-1]", "left = others"),
    ("planners/orders.py", "passing_all = passing_all[::-1]", "pass"),
    ("planners/orders.py", "forth = not forth", "pass"),
    ("runs/parts.py", "items = np.sort(real_items(batches))", "items = real_items(batches)"),
    ("runs/parts.py", "plan.offsets[items]", "plan.offsets[: len(items)]"),
    ("runs/parts.py", "last - first + 1 == len(rows)", "last - first <= len(rows)"),
    ("runs/parts.py", "column[items].distinct()", "column[items]"),
    ("runs/side_by_side.py", "stopped.set()\n        errors", "pass\n        errors"),
    ("adapters/intra_op.py", "self._restore()", "pass"),
    ("runs/indices.py", "np.arange(batch.count, dtype=np.int64)",
     "np.arange(batch.count - 1, dtype=np.int64)"),
    ("runs/engine.py", "np.argsort(-work", "np.argsort(work"),
    ("runs/engine.py", "taken + sizes[number] <= self.budget", "taken <= self.budget"),
    ("runs/engine.py", "if self.stalls or len(self.running)", "if len(self.running)"),
    ("runs/engine.py", " if self.numbers[place] not in self.done", ""),
    ("runs/pools.py", "QUEUED * self", "99 * self"),
    ("runs/tasks.py", "if digest not in self.found:", "if True:"),
    ("runs/sending.py", "return found is kernel", "return True"),
    ("runs/fingerprints.py", "plan.offsets,", "None,"),
    ("runs/indices.py", "layout.starts[batch.items]", "layout.starts[batch.items - 1]"),
    ("runs/indices.py", "np.where(fits[:, None], shapes, 0)", "shapes"),
    ("runs/indices.py", "np.arange(len(batch.items)) < batch.count",
     "np.arange(len(batch.items)) <= batch.count"),
    ("runs/indices.py", "known.get(dim, nothing)", "known.get(dim, given[:, 0])"),
    ("runs/indices.py", "np.where(fits[:, None], shapes, 0), None",
     "np.where(fits[:, None], shapes, 0), self.sizes.offsets(dims)[batch.items]"),
    ("runs/matching.py", "if offsets.any()]", "if False]"),
    ("runs/verification.py", "(MORE_PADDING // 2)", "0"),
    ("runs/packing.py", "mask & row_mask[:, None]", "mask"),
    ("runs/packing.py", "if count > rows:", "if count > rows + 1:"),
    ("runs/packing.py", "refuse_surplus(plan)\n    held", "held"),
    ("runs/packing.py", "if order is not None:", "if False:"),
    ("runs/packing.py", 'check_indices("pack", self.kernel, columns)', "pass"),
    ("runs/host_columns.py", "row_mask.reshape(-1, 1), lengths, 0", "True, lengths, 0"),
    ("runs/host_columns.py", "place >= lengths", "place > lengths"),
    ("runs/host_columns.py", "where=place < 0)", "where=place < -1)"),
    ("runs/packer.py", 'place_items("Packer", made, self.offsets)', "made"),
    ("runs/host_columns.py", "lengths = real\n", "pass\n"),
    ("runs/host_columns.py", "None if self.layout.contiguous else self.layout", "None"),
    ("runs/packer.py", "moving.advance()\n", "pass\n"),
    ("runs/packer.py", "moving.set_epoch(moving.epoch + 1)", "pass"),
    ("runs/prefetching.py", "left.set()\n        thread.join()", "pass"),
    ("runs/prefetching.py", "raise item.error", "return"),
    ("planners/batches.py", "int(np.argmax(fits))", "0"),
    ("planners/slots.py", "math.ceil(headroom * length)", "int(headroom * length)"),
    ("runs/indices.py", "return slice(int(starts[0]), int(ends[-1]))",
     "return slice(0, int(ends[-1]))"),
    ("runs/indices.py", "np.repeat(starts, counts) + within", "np.repeat(starts, counts)"),
    ("runs/indices.py", "if full and (shapes == np.array(capacity)).all():", "if full:"),
    ("runs/assembly.py", "return flat if order is None else", "return flat if True else"),
    ("runs/assembly.py", "and flat.dtype == self.total.dtype:", "and True:"),
    ("runs/jobs.py", "self.done = number + 1", "self.done = number"),
    ("runs/footprint.py", "results = sum(", "results = 0 * sum("),
    ("runs/footprint.py", "initial=own))[:-1]", "initial=own))[1:]"),
    ("runs/footprint.py", "held - pages + math", "held + math"),
    ("runs/footprint.py", "if not ragged:\n        return 0", "if False:\n        return 0"),
    ("runs/budgeting.py", "max(peak + inputs, gathered)", "peak + inputs + gathered"),
    ("runs/budgeting.py", "if self._excess(planned):\n            self._refuse",
     "if False:\n            self._refuse"),
    ("runs/budgeting.py", "largest * CONCEIVABLE", "0 * largest"),
    ("interpolation.py", "- sum(strides)", "- sum(strides) + 1"),
    ("interpolation.py", "xp.clip(xp.astype(place, xp.int32), least)",
     "xp.astype(place, xp.int32)"),
    ("interpolation.py", "[length - 3 for", "[length - 2 for"),
    ("vectors.py", "(2, 1, 0)", "(1, 2, 0)"),
    ("peaks.py", "fixed = max(0, *(", "fixed = 0 * max(0, *("),
    ("runs/iteration.py", "rows.live = rows.live & ~over", "rows.live = rows.live & ~done"),
    ("runs/iteration.py", "batches=tuple(self.over)", "batches=self.job.plan.batches"),
    ("runs/iteration.py", "items[self.iterations[items] == 0]", "items"),
    ("runs/working_rows.py", "np.zeros(len(new), np.int64)])\n        self.live = np.ones",
     "np.full(len(new), self.ages.max(initial=0))])\n        self.live = np.ones"),
    ("runs/rounds.py", "for column in arguments:", "for column in ():"),
    ("runs/probes.py", "(least, 2 * least, 3 * least)", "(least, least + 1)"),
    ("recipes/transport.py", 'steered = {**options.fixed(), "tile": 0}',
     'steered = {**options.fixed(), "tile": tile}'),
    ("recipes/transport.py", "return given.bytes - held", "return given.bytes"),
    ("recipes/transport_frames.py", "values[top - t0 : bottom - t0, left",
     "values[: bottom - top, left"),
    ("recipes/transport_results.py", "np.array([y0, x0]) + centre", "np.array([y0, x0])"),
    ("fourier.py", "np.minimum(mode, n - mode), place", "np.minimum(mode, n - 1 - mode), place"),
    ("fourier.py", "places = xp.asarray(np.minimum(mode, n - mode)",
     "places = xp.asarray(mode // 2"),
    ("fourier.py", "found[..., 1 : (x + 1) // 2, :, :] *= 2", "found[..., 1:, :, :] *= 2"),
    ("fourier.py", "rising + xp.flip(falling, axis=axis)", "rising + falling"),
    ("fourier.py", "if rest := lines % step", "if (rest := lines % step) > step"),
    ("fourier.py", "range(0, lines - step + 1, step)", "range(0, lines - step, step)"),
    ("fourier.py", "slice(start, min(start + step, count))", "slice(start, start + 1)"),
    ("fourier.py", "column *= factor[:, y]", "column *= factor[:, :1]"),
    ("fourier.py", "np.matmul(self.y.T, modes, out=rows)", "np.matmul(self.y, modes, out=rows)"),
    ("runs/pace.py", "if computing > SLOWER", "if computing < SLOWER"),
    ("runs/pace.py", "usable_cores() - 1", "usable_cores()"),
    ("runs/streaming.py", "held + len(reading) == len(buffers)",
     "held + len(reading) > len(buffers)"),
    ("stores/direct.py", "return (position - address) % BLOCK_BYTES",
     "return (address - position) % BLOCK_BYTES"),
    ("stores/direct.py", "first = -position % BLOCK_BYTES", "first = 0"),
    ("stores/direct.py", "and _is_numpy_own(view)", ""),
    ("stores/direct.py", "places[number::THREADS]", "places[number + 1::THREADS]"),
    ("stores/direct.py", "!= piece.nbytes", "< 0"),
    ("stores/direct.py", "0 if fast else _slow.get(disk, 0) + 1", "_slow.get(disk, 0) + 1"),
    ("stores/file_arrays.py", "            or is_cached(", "            and is_cached("),
    ("stores/helping.py", "self._changed.wait_for(lambda: not pieces.under_way)", "pass"),
    ("stores/helping.py", "if pieces.error is not None:", "if False:"),
    ("stores/helping.py", "token = _offered.set(None)", "token = _offered.set(self)"),
    ("stores/helping.py", "if future.done() or pieces is None:", "if pieces is None:"),
    ("stores/helping.py", "max(left // SHARE, self.least)", "left // SHARE + 1"),
    ("stores/npy.py", """counted = 10 if first[6:7] == b"\\1" else 12""", "counted = 10"),
    ("stores/npy.py", "end <= FIRST_BYTES else", "True else"),
    ("stores/field_blocks.py", "if not self._is_direct(field, places):", "if True:"),
    ("host_memory.py", "_advise(buffer, _DO_FORK)", "pass"),
    ("fourier.py", "if row.strides[-1] != row.itemsize:", "if False:"),
    ("special.py", "x = np.maximum(x, least)", "x = np.maximum(x, least / 10)"),
    ("special.py", "x = xp.clamp(x, min=least)", "pass"),
    ("runs/measurement.py", "seconds -= min(stopwatch.beside(cheapest)", "seconds -= min(0.0"),
    ("runs/measurement.py", "later = firsts[1:][firsts[1:] > 0]", "later = firsts[firsts > 0]"),
    ("runs/measurement.py", "few - FEW * (many - few)", "few - (many - few)"),
    ("runs/sampled_batches.py", "max(axis=0)", "min(axis=0)"),
    ("runs/round_bytes.py", "each[count:].sum()", "each.sum()"),
    ("runs/round_bytes.py", "max(*fields, going)", "max(fields)"),
    ("stores/batch_files.py", "if zlib.crc32(bytes_view(content)) != record.crc32:", "if False:"),
    ("stores/batch_files.py", "if size != record.bytes:", "if False:"),
    ("stores/batch_files.py", "part.unlink(missing_ok=True)", "pass"),
    ("stores/manifest.py", "zlib.crc32(body + b\"}\") != int(end[:-1])", "False"),
    ("stores/manifest.py", "identity.get(name) != saved.get(name)", "False"),
    ("reports/padding.py", "self.useful + self.slot_padding + self.row_padding",
     "self.useful + self.slot_padding"),
    ("reports/padding.py", "Padding(useful, held - useful, padded - held)",
     "Padding(useful, padded - held, held - useful)"),
    ("reports/padding.py", "np.lexsort((chosen, -padding[chosen]))",
     "np.lexsort((chosen, padding[chosen]))"),
    ("reports/padding.py", "Carriers(place + 1,", "Carriers(place,"),
]  # fmt: skip


def survives(path: str, old: str, new: str) -> bool:
    """Whether all tests pass although the fault is there."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "stowplan"
        shutil.copytree(ROOT / "src" / "stowplan", copy)
        source = (copy / path).read_text(encoding="utf-8")
        if old not in source:
            raise SystemExit(f"{path} no longer holds {old!r}: plant the fault elsewhere")
        (copy / path).write_text(source.replace(old, new), encoding="utf-8")
        code = (
            f"import sys, pytest; sys.path.insert(0, {folder!r}); "
            "sys.exit(pytest.main(sys.argv[1:]))"
        )
        options = ["-x", "-q", "-p", "no:cacheprovider"]
        own = next((tests for name, tests in OWN_TESTS.items() if path.startswith(name)), None)
        for tests in ([own], TESTS) if own else (TESTS,):
            names = [] if tests == [own] else ["-k", "not torch and not jax"]
            command = [sys.executable, "-c", code, *options, *names, *tests]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
            if done.returncode not in (0, 1):
                raise SystemExit(done.stdout.decode() + done.stderr.decode())
            if done.returncode == 1:
                return False
        return True


def main() -> int:
    """Plant every fault in turn; the exit code says whether one was missed."""
    missed = 0
    wanted = [
        each for each in MUTANTS if not sys.argv[1:] or each[0].startswith(tuple(sys.argv[1:]))
    ]
    for path, old, new in wanted:
        alive = survives(path, old, new)
        missed += alive
        print(f"{'MISSED' if alive else 'caught'}  {path}: {new}", flush=True)
    print(f"{len(wanted) - missed} of {len(wanted)} planted faults caught")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
