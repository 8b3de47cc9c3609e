from __future__ import annotations

import numpy as np
import pytest


@pytest.fixture
def field() -> np.ndarray:
    rng = np.random.default_rng(7)
    return rng.standard_normal((6, 5, 4, 3)) + 1j * rng.standard_normal((6, 5, 4, 3))
