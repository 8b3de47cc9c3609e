"""The heap of the host kept within a budget while batches come and go."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from stowplan.adapters import Adapter
from stowplan.host_memory import give_back_host, large_blocks_apart, resident_host_bytes
from stowplan.planners.batches import Plan

__all__ = ["HeapLimit"]


class HeapLimit:
    """Keeps the process within the budget of a plan that was probed, whose batches are on the host.

    Free memory is given back before a batch that might take the process beyond the budget. Room is
    left for the batch, for the gaps that it leaves in the heap, at worst as large as itself, and
    for results still to come. Where the budget has no such room large blocks lie apart.
    """

    def __init__(self, plan: Plan, adapter: Adapter, like: object) -> None:
        memory = plan.memory
        self.active = bool(memory and memory.batch_bytes and adapter.on_host(like))
        self.tight = False
        if self.active:
            assert memory is not None
            self.start = resident_host_bytes()
            self.most = memory.budget.bytes - (memory.together + 1) * max(memory.batch_bytes)
            self.to_come = memory.held_bytes
            self.batches = len(plan.batches)
            self.tight = self.most < memory.held_bytes

    def around_batches(self) -> AbstractContextManager[None]:
        """Give what the loop over batches runs in."""
        return large_blocks_apart() if self.tight else nullcontext()

    def before_batch(self, number: int) -> None:
        """Compare what has come to lie in memory with what the budget leaves."""
        if not self.active or self.tight:
            return
        to_come = self.to_come * max(1 - number / self.batches, 0)
        if resident_host_bytes() - self.start > self.most - to_come:
            give_back_host()
