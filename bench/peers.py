"""Peers that may not be there: what is missing is said, on the screen and in the results."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = ["said", "why_missing"]


def why_missing(*modules: str) -> str | None:
    """Give the reason why some modules cannot be imported, None where they can.

    A peer may be installed and yet fail with the other packages, in whatever way it likes.
    """
    for module in modules:
        try:
            import_module(module)
        except ImportError as error:
            return f"{module} does not import, {type(error).__name__}: {error}"
        except Exception as error:  # noqa: BLE001  # an old peer beside new packages
            return f"{module} is installed and fails, {type(error).__name__}: {error}"
    return None


def said(absent: dict[str, str]) -> dict[str, Any]:
    """Print the peers that are not there, and give them for the results, as `start` does."""
    reasons = {name: f"{name}: {reason}" for name, reason in absent.items()}
    for reason in reasons.values():
        print(f"NOT RUN {reason}", flush=True)
    return {"not_run": reasons}
