"""Planners: sizes and limits in, frozen index plans out; NumPy only."""

from typing import TYPE_CHECKING

from stowplan.on_use import names_on_use
from stowplan.planners.batches import Batch, Plan
from stowplan.planners.choose import SlotChoice, choose_slots, slot_curve
from stowplan.planners.chunks import split_chunks
from stowplan.planners.cost import Costs, predict_seconds
from stowplan.planners.slots import assign_exact, assign_slots

if TYPE_CHECKING:
    from stowplan.planners.alternatives import predict_alternatives
    from stowplan.planners.buckets import fit_buckets
    from stowplan.planners.grids import GridIndex, crop, item_grids, pad, unpad
    from stowplan.planners.minibatches import MinibatchSlots
    from stowplan.planners.row_packing import RowPacking, pack_rows
    from stowplan.planners.seating import Seats

__all__ = [
    "Batch",
    "Costs",
    "GridIndex",
    "MinibatchSlots",
    "Plan",
    "RowPacking",
    "Seats",
    "SlotChoice",
    "assign_exact",
    "assign_slots",
    "choose_slots",
    "crop",
    "fit_buckets",
    "item_grids",
    "pack_rows",
    "pad",
    "predict_alternatives",
    "predict_seconds",
    "slot_curve",
    "split_chunks",
    "unpad",
]

_ON_USE = {
    "predict_alternatives": "planners.alternatives",
    "fit_buckets": "planners.buckets",
    "GridIndex": "planners.grids",
    "crop": "planners.grids",
    "item_grids": "planners.grids",
    "pad": "planners.grids",
    "unpad": "planners.grids",
    "MinibatchSlots": "planners.minibatches",
    "RowPacking": "planners.row_packing",
    "pack_rows": "planners.row_packing",
    "Seats": "planners.seating",
}
"""Names that most plans do without, and the module that each is in."""

__getattr__ = names_on_use(__name__, _ON_USE)
