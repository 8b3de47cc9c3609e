"""The errors that stowplan raises, so that a caller can tell a bad plan from bad data."""


class SignatureError(ValueError):
    """A kernel declaration that contradicts itself; the message points at the place."""


class PlanError(ValueError):
    """Sizes, slots or limits that no plan satisfies."""


class BudgetError(PlanError):
    """A budget of bytes that not even one row satisfies.

    Attributes
    ----------
    needs : str
        What takes the bytes: the message without the budget and the cure; empty where it is whole.
    missing : int
        Bytes by which the budget is too small, as far as is known; else 0.
    """

    needs = ""
    missing = 0


class DataError(ValueError):
    """Values that a kernel, a recipe or a reader cannot accept."""


class StoreError(OSError):
    """A disk that is full, or files of a run that another process holds."""


class FrameworkError(TypeError):
    """Arrays of two frameworks in one call, or a dtype or device that would change silently."""


class ExecutorError(RuntimeError):
    """An executor that cannot take tasks, or that broke before all were done."""


class MissingDependencyError(ImportError):
    """An optional dependency that is not installed; the message gives the pip extra."""
