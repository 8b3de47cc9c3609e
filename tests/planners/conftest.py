import numpy as np
import pytest


@pytest.fixture(scope="session")
def structures() -> dict[str, np.ndarray]:
    """Atoms and k-vectors of 3104 small and 96 large structures: the published slot example."""
    exponent = 0.815 / (1 - 0.815)
    u = (np.arange(3104) + 0.5) / 3104
    k = np.floor(4096 * u ** (1 / exponent)).astype(int)
    atoms = np.clip(np.round(64 * (k / 4096) ** 0.7), 2, 64).astype(int)
    v = (np.arange(96) + 0.5) / 96
    large_k = np.floor(4097 * (32768 / 4097) ** v).astype(int)
    large_atoms = np.minimum(np.round(64 + 128 * v), 192).astype(int)
    return {
        "atoms": np.concatenate([atoms, large_atoms]),
        "k": np.concatenate([k, large_k]),
    }
