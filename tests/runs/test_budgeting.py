"""Budgets of a run: kept, refused where one row does not fit, and printed with their source."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import textwrap
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from array_api_compat import array_namespace
from hypothesis import given, settings
from hypothesis import strategies as st

import stowplan as sp
from stowplan.adapters import get_adapter
from stowplan.peaks import PeakModel
from stowplan.runs import budgeting, probes


@sp.kernel("(atoms)->(atoms)", ragged="atoms")
def gram(x, *, scale):
    """Outer products, larger than what goes in."""
    xp = array_namespace(x)
    return xp.sum(xp.exp(-scale * (x[..., :, None] * x[..., None, :])), axis=-1)


def columns(sizes, dtype="float64"):
    rng = np.random.default_rng(3)
    return {"x": sp.Ragged(rng.normal(size=int(np.sum(sizes))).astype(dtype), np.asarray(sizes))}


def needed(error) -> int:
    return int(re.search(r"at least budget=(\d+)", str(error.value))[1])


@pytest.fixture(autouse=True)
def forget(monkeypatch):
    monkeypatch.delenv("STOWPLAN_BUDGET", raising=False)
    probes._known.clear()


def test_a_plan_keeps_within_the_budget_and_says_how(framework, put):
    data = put(columns([40, 64] * 50))
    for budget in ("1 MiB", "5 MB", 3_000_000):
        plan = sp.plan(gram, data, slots=1, budget=budget, scale=0.1)
        assert plan.memory.peak_bytes <= plan.memory.budget.bytes
        assert plan.memory.budget.bytes == (
            budget if isinstance(budget, int) else plan.memory.budget.bytes
        )
        assert str(budget) in str(plan)
        assert "gram at atoms=64" in str(plan)
        np.testing.assert_array_equal(
            np.sort(np.concatenate([b.items[: b.count] for b in plan.batches])), np.arange(100)
        )


def test_a_larger_budget_gives_no_fewer_rows(framework, put):
    data = put(columns([64] * 200))
    rows = [
        sp.plan(gram, data, budget=budget, scale=0.1).rows[0]
        for budget in ("500 kB", "1 MB", "3 MB", "40 MB")
    ]
    assert rows == sorted(rows)
    assert rows[0] < rows[-1]


def test_results_under_a_budget_are_those_without(framework, put, host):
    data = put(columns([3, 60, 20, 64] * 10))
    free = host(sp.run(gram, data, scale=0.1).values)
    tight = host(sp.run(gram, data, budget="600 kB", scale=0.1).values)
    np.testing.assert_allclose(tight, free, rtol=1e-13)


def test_a_budget_below_one_row_gives_the_bytes_that_are_enough(framework, put):
    data = put(columns([40, 64] * 20))
    with pytest.raises(sp.BudgetError, match="one row of gram at atoms=64 needs") as error:
        sp.plan(gram, data, slots=1, budget=20_000, scale=0.1)
    text = str(error.value)
    for part in ("for each row", "results and indices of 40 items", "20000 bytes", "budget=20000"):
        assert part in text
    enough = sp.plan(gram, data, slots=1, budget=needed(error), scale=0.1)
    assert enough.memory.peak_bytes <= needed(error)
    with pytest.raises(sp.BudgetError):
        sp.plan(gram, data, slots=1, budget=int(needed(error) * 0.9), scale=0.1)


def test_rows_by_hand_may_not_exceed_a_budget(framework, put):
    data = put(columns([64] * 20))
    peak = sp.plan(gram, data, rows=20, budget="1 GB", scale=0.1).memory.peak_bytes
    with pytest.raises(sp.BudgetError, match=r"batch of rows=20.*such as rows=\d+") as error:
        sp.plan(gram, data, rows=20, budget=peak - 1, scale=0.1)
    assert sp.plan(gram, data, rows=20, budget=needed(error), scale=0.1).rows == (20,)


def test_rows_that_slots_carry_are_kept_or_refused(framework, put):
    data = put(columns([40, 64] * 20))
    free = sp.plan(gram, data, slots=2, rows=8, budget="1 GB", scale=0.1)
    kept = sp.plan(gram, data, slots=free.slots, budget="1 GB", scale=0.1)
    assert kept.rows == free.rows
    mixed = [dict(free.slots[0]), {"atoms": 64}]
    for slots in (free.slots, mixed):
        with pytest.raises(sp.BudgetError, match="needs"):
            sp.plan(gram, data, slots=slots, budget="60 kB", scale=0.1)


def test_peaks_by_hand_need_no_probe(framework, put, monkeypatch):
    monkeypatch.setattr(budgeting, "make_probes", None)
    data = put(columns([4] * 10))
    plan = sp.plan(gram, data, peak=(1000, 100_000), budget="1.5 MB")
    assert 1 < plan.rows[0] <= 14
    assert "peak= by hand" in str(plan)
    with pytest.raises(sp.BudgetError, match=r"needs 10\d* bytes"):
        sp.plan(gram, data, peak=(0, 10**7), budget="500 kB")
    of_numpy = sp.plan(gram, data, peak=(np.int64(1000), np.float32(100_000)), budget="1.5 MB")
    assert of_numpy.memory == plan.memory
    models = (PeakModel(0, 1000, "mine"), PeakModel(0, 9000, "mine"))
    two = sp.plan(gram, data, slots=[{"atoms": 3}, {"atoms": 4}], peak=models, budget="500 kB")
    assert two.memory.sources == ("mine",)


def test_what_calibrate_gives_is_taken_as_a_peak(framework, put):
    data = put(columns([64] * 100))
    plan = sp.plan(gram, data, slots=1)
    models = sp.calibrate(gram, data, plan, scale=0.1)
    assert sp.plan(gram, data, slots=1, peak=models, budget="2 MB").memory.peak_bytes <= 2e6


@pytest.mark.parametrize(
    "peak",
    [
        (np.inf, 1),
        (np.nan, 1),
        (0, np.inf),
        (1,),
        (1, 2, 3),
        "1000",
        5,
        (None, 3),
        (0, 0),
        (-1, 5),
        (1, "2"),
        [(0, 1), (0, 2)],
    ],
)
def test_a_peak_that_is_none(kernels, peak):
    with pytest.raises(sp.BudgetError, match="peak"):
        sp.plan(gram, columns([4] * 3), slots=1, peak=peak, budget="1 MB")


def test_without_shared_parameters_the_declared_memory_counts(kernels):
    data = kernels.make_atoms([4] * 100)
    row = 8 * (20 * 4 + 20)
    plan = sp.plan(kernels.pull, data, budget="1 MB")
    assert plan.memory.batch_bytes == (plan.rows[0] * row,)
    assert "memory= of pull" in str(plan)


def test_a_budget_says_which_shared_parameters_it_lacks():
    with pytest.raises(sp.PlanError, match=r"sp\.plan\(\.\.\., scale=\.\.\.\).*peak=\("):
        sp.plan(gram, columns([4]), budget="1 GiB")


def test_the_default_budget_is_a_share_of_what_is_free_and_probes_only_where_it_may_matter(
    framework, put, monkeypatch
):
    data = put(columns([64] * 100))
    plan = sp.plan(gram, data, scale=0.1)
    assert plan.memory.peak_bytes is None
    assert re.search(r"memory +\S+ [MGT]iB \(0\.8 of .* free on .*\); not probed", str(plan))
    monkeypatch.setattr(
        type(sp.adapters.get_adapter(framework)), "free_bytes", lambda self, device: 3_000_000
    )
    tight = sp.plan(gram, data, scale=0.1)
    assert tight.memory.peak_bytes <= 2_400_000
    assert "0.8 of 2.861 MiB free" in str(tight)


def test_the_environment_gives_a_budget_and_the_plan_says_so(framework, put, monkeypatch):
    data = put(columns([64] * 100))
    monkeypatch.setenv("STOWPLAN_BUDGET", "2MB")
    plan = sp.plan(gram, data, scale=0.1)
    assert plan.memory.peak_bytes <= 2_000_000
    assert "STOWPLAN_BUDGET=2MB" in str(plan)
    assert "STOWPLAN" not in str(sp.plan(gram, data, budget="3 MB", scale=0.1))
    monkeypatch.setenv("STOWPLAN_BUDGET", "plenty")
    with pytest.raises(sp.BudgetError, match="STOWPLAN_BUDGET=plenty is no budget"):
        sp.run(gram, data, scale=0.1)


def test_an_unasked_probe_that_fails_is_told_and_the_plan_goes_on(load_framework, monkeypatch):
    torch = load_framework("torch")

    @sp.kernel("(atoms)->(atoms)", ragged="atoms")
    def peeks(x):
        return x * float(torch.max(x))

    monkeypatch.setenv("STOWPLAN_BUDGET", "300 kB")
    data = {"x": sp.Ragged(torch.ones(3000), [300] * 10)}
    plan = sp.plan(peeks, data)
    assert "not probed" in str(plan)
    assert "the peak of peeks cannot be counted" in str(plan)
    with pytest.raises(sp.PlanError, match=r"peeks.*reads a value.*peak=\("):
        sp.plan(peeks, data, budget="3 MB")
    assert sp.plan(peeks, data, peak=(0, 5000), budget="3 MB").memory.peak_bytes <= 3e6


def test_a_kernel_that_closes_over_a_tensor_is_named(load_framework):
    torch = load_framework("torch")
    weights = torch.ones(4)

    @sp.kernel("(atoms)->(atoms)", ragged="atoms")
    def weighs(x):
        return x * weights.sum()

    with pytest.raises(sp.PlanError, match=r"weighs.*uses a tensor that is none of its.*peak=\("):
        sp.plan(weighs, {"x": sp.Ragged(torch.ones(8), [4, 4])}, budget="1 MB")


def test_a_budget_that_is_none_is_refused_for_no_items_too():
    nothing = {"x": sp.Ragged(np.zeros(0), [])}
    assert sp.run(gram, nothing, budget="1 MB", scale=0.1).values.shape == (0,)
    with pytest.raises(sp.BudgetError, match="is no budget"):
        sp.run(gram, nothing, budget="plenty", scale=0.1)


def test_a_share_of_free_memory_is_probed_once_while_the_rest_of_it_changes(
    framework, put, monkeypatch
):
    adapter = type(sp.adapters.get_adapter(framework))
    free = iter(range(10**9, 10**10, 10**6))
    monkeypatch.setattr(adapter, "free_bytes", lambda self, device: next(free))
    counted, count = [], adapter.peak_bytes

    def counting(*args, **options):
        counted.append(options["rows"])
        return count(*args, **options)

    monkeypatch.setattr(adapter, "peak_bytes", counting)
    data = put(columns([16] * 40))
    first = sp.plan(gram, data, budget=0.5, scale=0.1)
    probes_made = len(counted)
    second = sp.plan(gram, data, budget=0.5, scale=0.1)
    assert first.memory.budget.bytes < second.memory.budget.bytes
    assert probes_made == len(counted) > 0


def test_a_plan_for_a_device_that_is_not_here_is_that_of_the_device(load_framework):
    """Data come along; the budget is bytes, for what is free there is unknown."""
    torch = load_framework("torch")
    x = torch.ones(64 * 100)
    data = {"x": sp.Ragged(x, [64] * 100)}
    options = {"slots": 1, "budget": "2 MB", "scale": 0.1}
    here, there = (sp.plan(gram, data, device=device, **options) for device in (None, "cuda:3"))
    moved = there.memory.held_bytes - here.memory.held_bytes
    more = sum(len(b.items) for b in there.batches) - sum(len(b.items) for b in here.batches)
    assert moved == x.nbytes + more * 64 * 9  # of each place its index and whether it is real
    assert there.memory.peak_bytes <= 2e6
    assert there.on == "torch"
    for free in (None, 0.5):
        with pytest.raises(sp.FrameworkError, match=r"plan: .* on cuda:3 is unknown.*'20 GiB'"):
            sp.plan(gram, data, device="cuda:3", budget=free, scale=0.1)
    with pytest.raises(sp.FrameworkError, match="device='moon' is no device of torch"):
        sp.plan(gram, data, device="moon", **options)
    with pytest.raises(sp.FrameworkError, match="device='cuda:3' is no device of numpy"):
        sp.plan(gram, columns([4]), device="cuda:3", **options)


@pytest.mark.parametrize("budget", [0, -5, "many", "3 parsecs", "", 1.5, True])
def test_a_budget_that_is_no_number_of_bytes(kernels, budget):
    with pytest.raises(sp.BudgetError, match="budget="):
        sp.plan(kernels.pull, kernels.make_atoms([4]), budget=budget)


def test_a_gradient_takes_more_and_is_planned_for_by_itself(load_framework):
    torch = load_framework("torch")
    data = {"x": sp.Ragged(torch.ones(64 * 100, requires_grad=True), [64] * 100)}
    with torch.no_grad():
        forward = sp.plan(gram, data, budget="1 MB", scale=0.1)
    backward = sp.plan(gram, data, budget="1 MB", scale=0.1)
    assert "gradient of gram" in str(backward)
    assert "gradient of gram" not in str(forward)
    assert backward.rows[0] < forward.rows[0]
    by_name = sp.plan(gram, data, budget="3 MB", scale=torch.tensor(0.1), gradient="scale")
    assert "gradient of gram" in str(by_name)
    with pytest.raises(sp.PlanError, match=r"gradient names 'y'.*x, scale"):
        sp.plan(gram, data, budget="3 MB", scale=0.1, gradient="y")
    with pytest.raises(sp.FrameworkError, match="numpy has no gradients"):
        sp.plan(gram, columns([4]), budget="3 MB", scale=0.1, gradient=True)


@pytest.mark.parametrize("framework", ["numpy", "torch", "jax"])
def test_a_gradient_names_floating_columns_and_parameters_or_nothing(framework, put, kernels):
    sizes = [3, 5]
    data = put(
        {
            "charges": sp.Ragged(np.ones(8), sizes),
            "neighbours": sp.Ragged(np.zeros((8, 2), np.int64), sizes),
        }
    )
    with pytest.raises(sp.PlanError, match=r"gradient names 'neighbours', which is .*int64"):
        sp.plan(kernels.near, data, budget="1 MB", gradient="neighbours")
    with pytest.raises(sp.PlanError, match=r"gradient=5.*gradient=\['x'\]"):
        sp.plan(kernels.near, data, budget="1 MB", gradient=5)
    for nothing in ((), False):
        plan = sp.plan(kernels.near, data, budget="40 MB", gradient=nothing)
        assert "gradient" not in str(plan)


def test_an_eager_gradient_in_jax_is_planned_with_values_and_compiles_nothing_again(load_framework):
    load_framework("jax")
    jax = importlib.import_module("jax")
    data = columns([64] * 30)
    x = jax.numpy.asarray(data["x"].values)
    seen = []

    def loss(x, budget):
        column = {"x": sp.Ragged(x, [64] * 30)}
        seen.append(sp.plan(gram, column, budget=budget, scale=0.1))
        return (sp.run(gram, column, budget=budget, scale=0.1).values ** 2).sum()

    tight = jax.grad(loss)(x, "1 MB")
    assert "compiled gradient of gram" in str(seen[0])
    assert len(seen[0].batches) > 1
    assert seen[0].memory.peak_bytes <= 1e6
    np.testing.assert_allclose(tight, jax.grad(loss)(x, "1 GB"), rtol=1e-12)
    from stowplan.adapters.jax import adapter

    before = adapter.traces["gram"]
    jax.grad(loss)(2 * x, "1 MB")
    assert adapter.traces["gram"] == before


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_a_loss_and_its_gradient_keep_a_budget(framework, load_framework):
    load_framework(framework)
    data = columns([64] * 30)
    x = importlib.import_module("jax.numpy" if framework == "jax" else "torch").asarray(
        data["x"].values
    )
    data = {"x": sp.Ragged(x, [64] * 30)}
    options = {"loss": _squares, "wrt": "x", "scale": 0.1}
    value, slopes = sp.value_and_grad(gram, data, **options)
    tight, same = sp.value_and_grad(gram, data, budget="1 MB", **options)
    np.testing.assert_allclose(float(tight), float(value), rtol=1e-12)
    np.testing.assert_allclose(np.asarray(same["x"].values), np.asarray(slopes["x"].values))
    with pytest.raises(sp.BudgetError, match="gradient of gram"):
        sp.value_and_grad(gram, data, budget="1 kB", **options)


def _squares(out):
    xp = array_namespace(out.values)
    return xp.sum(xp.reshape(out.values**2, (30, 64)), axis=-1)


@pytest.mark.parametrize("verb", ["plan", "run"])
def test_a_budget_or_progress_under_a_users_jit_is_refused(load_framework, verb):
    load_framework("jax")
    jax = importlib.import_module("jax")

    def total(x, **options):
        return getattr(sp, verb)(gram, {"x": sp.Ragged(x, [4, 4])}, scale=0.1, **options)

    with pytest.raises(sp.FrameworkError, match=rf"{verb}: budget='1 MB'.*traced program.*rows="):
        jax.jit(lambda x: total(x, budget="1 MB"))(jax.numpy.ones(8))
    with pytest.raises(sp.FrameworkError, match="progress=True"):
        jax.jit(lambda x: sp.run(gram, {"x": sp.Ragged(x, [4, 4])}, progress=True, scale=0.1))(
            jax.numpy.ones(8)
        )
    if verb == "run":
        assert jax.jit(total)(jax.numpy.ones(8)).values.shape == (8,)


def test_a_plan_and_a_budget_are_not_given_twice():
    data = columns([4, 4])
    plan = sp.plan(gram, data)
    for option in ({"budget": "1 GB"}, {"peak": (0, 1)}, {"rows": 2}):
        with pytest.raises(sp.PlanError, match=f"{next(iter(option))}= while planning"):
            sp.run(gram, data, plan, scale=0.1, **option)


def test_the_forecast_is_saved_with_the_plan(tmp_path):
    plan = sp.plan(gram, columns([4] * 9), budget="1 MB", scale=0.1)
    plan.save(tmp_path / "plan")
    assert sp.Plan.load(tmp_path / "plan").memory == plan.memory
    assert json.loads((tmp_path / "plan.json").read_text())["memory"]["budget"]["bytes"] == 10**6
    assert plan.summary()["predicted_bytes"] == plan.memory.peak_bytes


@settings(max_examples=20)
@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=60),
    slots=st.integers(1, 4),
    budget=st.integers(20_000, 3_000_000),
)
def test_numpy_never_takes_more_than_its_plan_says(sizes, slots, budget):
    """Counted by tracemalloc, index arrays and results included."""
    data = columns(sizes)
    sp.run(gram, data, scale=0.1)  # imports
    try:
        plan = sp.plan(gram, data, slots=slots, budget=budget, scale=0.1)
    except sp.BudgetError:
        return
    plan = replace(plan)  # no index arrays yet
    tracemalloc.start()
    result = sp.run(gram, data, plan, scale=0.1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del result
    small = 60_000  # objects of Python: a few for each batch
    assert peak <= plan.memory.peak_bytes + small + 6_000 * len(plan.batches)
    assert plan.memory.peak_bytes <= budget


LIMITED = """
    import resource, sys
    import numpy as np
    import stowplan as sp
    from stowplan.kernels.bragg import intensity
    from stowplan.recipes import bragg
    {imports}
    crystal = bragg.Crystal((100, 100, 100, 90, 90, 90), mosaic=bragg.mosaic_rotations(0.5, 9))
    detector = bragg.Detector(({side}, {side}))
    tiny = bragg.Detector((8, 8))
    def image(detector, **options):
        options = {{"on": {framework!r}, "dtype": "float32", **options}}
        return bragg.image(crystal, detector, bragg.Beam(6.2), **options)
    image(tiny, budget="1 GB")  # what is imported and loaded once is no part of a run
    lines = open("/proc/self/status").read()
    base = int(lines.split("VmSize:")[1].split()[0]) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (base + {limit}, base + {limit}))
    options = {{"budget": {budget!r}}} if {budget!r} else {{"rows": {side}}}
    photons = image(detector, **options)
    print(float(photons.max()))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resource limits of Linux")
@pytest.mark.parametrize("framework", ["numpy", "torch", "jax"])
def test_a_process_limited_to_its_budget_finishes(framework, load_framework):
    load_framework(framework)
    limit = 96 * 2**20

    def attempt(budget):
        imports = "import torch; torch.set_num_threads(1)" if framework == "torch" else ""
        code = textwrap.dedent(LIMITED).format(
            framework=framework, imports=imports, budget=budget, limit=limit, side=512
        )
        return subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        )  # fmt: skip

    kept = attempt(limit)
    assert kept.returncode == 0, kept.stderr
    assert float(kept.stdout) == pytest.approx(154.652, abs=0.02)
    assert "out of memory" not in kept.stderr


@sp.kernel("(atoms)->()", ragged="atoms")
def grown(x):
    """One number, by way of arrays as large as what goes in."""
    xp = array_namespace(x)
    return xp.sum(xp.exp(x) / (1 + x), axis=-1)


@sp.kernel("(atoms)->(atoms)", ragged="atoms")
def halved(x, *, age, state):
    """A step that ends."""
    return {"x": state["x"] / 2}


@pytest.mark.parametrize("framework", ["numpy", "torch", "jax"])
@pytest.mark.parametrize("repeated", [False, True])
def test_gaps_of_several_shapes_count_where_there_is_room(
    framework, repeated, load_framework, monkeypatch
):
    load_framework(framework)
    adapter = get_adapter(framework)
    most = adapter.round_gap_bytes if repeated else adapter.gap_bytes
    assert most > 2**20 or (framework == "numpy" and not repeated)
    kernel, options = grown, {"rows": 16, "on": framework}
    if repeated:
        done = lambda state: (state["x"][:, 0] < 1, state["x"][:, 0] > 9)  # noqa: E731
        options["rounds"] = sp.Rounds(lambda x: {"x": x}, done, 2, "x")
        kernel = halved

    def planned(sizes, budget):
        """Give the forecast, and bytes that it holds beyond one without gaps."""
        data = {"x": sp.Ragged(np.zeros(sum(sizes)), sizes)}
        slots = [{"atoms": size} for size in sorted(set(sizes))]
        memory = sp.plan(kernel, data, slots=slots, budget=budget, **options).memory
        with monkeypatch.context() as patch:
            patch.setattr(type(adapter), "gap_bytes", 0)
            patch.setattr(type(adapter), "round_gap_bytes", 0)
            without = sp.plan(kernel, data, slots=slots, budget=budget, **options).memory
        assert memory.batch_bytes == without.batch_bytes
        return memory, memory.held_bytes - without.held_bytes

    small, middle, large = [10_000] * 16, [200_000] * 16, [400_000] * 16
    assert planned(large, "4 GB")[1] == 0
    memory, gaps = planned(small + large, "4 GB")
    assert gaps == min(most, *memory.batch_bytes)
    memory, gaps = planned(middle + large, "4 GB")
    assert gaps == min(most, *memory.batch_bytes) == most
    with pytest.raises(sp.BudgetError) as error:
        planned(middle + large, memory.peak_bytes - gaps - 2**20)
    memory, gaps = planned(middle + large, needed(error))
    assert gaps < 2**22
    assert memory.peak_bytes <= needed(error)
