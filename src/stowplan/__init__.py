"""stowplan plans ragged batches once and runs them on JAX, PyTorch, CuPy or NumPy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stowplan.adapters import installed_frameworks
from stowplan.declaration import Kernel, kernel
from stowplan.errors import (
    BudgetError,
    DataError,
    ExecutorError,
    FrameworkError,
    MissingDependencyError,
    PlanError,
    SignatureError,
    StoreError,
)
from stowplan.on_use import names_on_use
from stowplan.planners.batches import Batch, Plan
from stowplan.planners.choose import choose_slots, slot_curve
from stowplan.planners.chunks import split_chunks
from stowplan.planners.cost import Costs
from stowplan.planners.slots import assign_slots
from stowplan.ragged import Ragged
from stowplan.runs.execution import run
from stowplan.runs.planning import plan

if TYPE_CHECKING:
    from stowplan.adapters.compile_cache import compile_cache
    from stowplan.gather import take_grid
    from stowplan.planners.buckets import fit_buckets
    from stowplan.planners.grids import GridIndex, crop, item_grids, pad, unpad
    from stowplan.planners.minibatches import MinibatchSlots
    from stowplan.planners.orders import order_pairs, order_products, order_windows
    from stowplan.planners.residency import keep_resident
    from stowplan.planners.row_packing import RowPacking, pack_rows
    from stowplan.planners.shards import share_devices
    from stowplan.planners.timeline import Residency
    from stowplan.reports.page import report
    from stowplan.reports.records import RunRecord, record
    from stowplan.runs.calibration import calibrate
    from stowplan.runs.dask_executor import dask_executor
    from stowplan.runs.devices import devices
    from stowplan.runs.field_batch import FieldBatch, FieldUsage
    from stowplan.runs.iteration import Iterated, iterate
    from stowplan.runs.joining import join_rows, split_rows
    from stowplan.runs.losses import value_and_grad
    from stowplan.runs.measurement import measure_costs
    from stowplan.runs.packer import Packer
    from stowplan.runs.packing import PackedBatch
    from stowplan.runs.rounds import Rounds
    from stowplan.runs.sampling import MinibatchSampler
    from stowplan.runs.verification import Verification, verify

__version__ = "0.1.0"

__all__ = [
    "Batch",
    "BudgetError",
    "Costs",
    "DataError",
    "ExecutorError",
    "FieldBatch",
    "FieldUsage",
    "FrameworkError",
    "GridIndex",
    "Iterated",
    "Kernel",
    "MissingDependencyError",
    "MinibatchSampler",
    "MinibatchSlots",
    "PackedBatch",
    "Packer",
    "Plan",
    "PlanError",
    "Ragged",
    "Rounds",
    "Residency",
    "RowPacking",
    "RunRecord",
    "SignatureError",
    "StoreError",
    "Verification",
    "assign_slots",
    "calibrate",
    "choose_slots",
    "compile_cache",
    "crop",
    "dask_executor",
    "devices",
    "fit_buckets",
    "installed_frameworks",
    "item_grids",
    "iterate",
    "join_rows",
    "keep_resident",
    "kernel",
    "measure_costs",
    "order_pairs",
    "order_products",
    "order_windows",
    "pack_rows",
    "pad",
    "plan",
    "record",
    "report",
    "run",
    "share_devices",
    "slot_curve",
    "split_chunks",
    "split_rows",
    "take_grid",
    "unpad",
    "value_and_grad",
    "verify",
]


_ON_USE = {
    "take_grid": "gather",
    "fit_buckets": "planners.buckets",
    "GridIndex": "planners.grids",
    "crop": "planners.grids",
    "item_grids": "planners.grids",
    "pad": "planners.grids",
    "unpad": "planners.grids",
    "MinibatchSlots": "planners.minibatches",
    "RunRecord": "reports.records",
    "record": "reports.records",
    "report": "reports.page",
    "RowPacking": "planners.row_packing",
    "pack_rows": "planners.row_packing",
    "PackedBatch": "runs.packing",
    "Rounds": "runs.rounds",
    "FieldBatch": "runs.field_batch",
    "FieldUsage": "runs.field_batch",
    "Iterated": "runs.iteration",
    "MinibatchSampler": "runs.sampling",
    "Packer": "runs.packer",
    "Residency": "planners.timeline",
    "Verification": "runs.verification",
    "calibrate": "runs.calibration",
    "compile_cache": "adapters.compile_cache",
    "dask_executor": "runs.dask_executor",
    "devices": "runs.devices",
    "iterate": "runs.iteration",
    "join_rows": "runs.joining",
    "keep_resident": "planners.residency",
    "measure_costs": "runs.measurement",
    "order_pairs": "planners.orders",
    "order_products": "planners.orders",
    "order_windows": "planners.orders",
    "share_devices": "planners.shards",
    "split_rows": "runs.joining",
    "value_and_grad": "runs.losses",
    "verify": "runs.verification",
}
"""Public names that planning and running do without, and the module that each is in."""


__getattr__ = names_on_use(__name__, _ON_USE)
