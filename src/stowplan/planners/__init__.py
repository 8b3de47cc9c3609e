"""Planners: sizes and limits in, frozen index plans out; NumPy only."""

from stowplan.planners.alternatives import predict_alternatives
from stowplan.planners.batches import Batch, Plan
from stowplan.planners.choose import SlotChoice, choose_slots, slot_curve
from stowplan.planners.chunks import split_chunks
from stowplan.planners.cost import Costs, predict_seconds
from stowplan.planners.slots import assign_exact, assign_slots

__all__ = [
    "Batch",
    "Costs",
    "Plan",
    "SlotChoice",
    "assign_exact",
    "assign_slots",
    "choose_slots",
    "predict_alternatives",
    "predict_seconds",
    "slot_curve",
    "split_chunks",
]
