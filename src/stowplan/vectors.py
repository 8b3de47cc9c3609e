"""Vectors of three components, as the framework computes them fastest.

Where calls are dear, in torch and CuPy, one array with the components along its first axis: a third
of the calls. Else three arrays: in NumPy they fit a cache; XLA fuses a component into the loops
that need it, but keeps an array of all three. Functions take the namespace ``xp`` of the arrays.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from importlib import import_module
from typing import Any, cast

from stowplan.special import framework_of

__all__ = ["dot", "each", "parts", "turned", "vector"]


def vector(xp: Any, array: Any, shape: tuple[int, ...]) -> Any:
    """Make a vector of an array (3, ...), with components of a shape.

    >>> import numpy as np
    >>> [part.shape for part in vector(np, np.ones((3, 2)), (-1, 1))]
    [(2, 1), (2, 1), (2, 1)]
    """
    whole = xp.reshape(array, (3, *shape))
    return xp.unstack(whole) if framework_of(xp) in ("numpy", "jax") else whole


def each(function: Callable[..., Any], *vectors: Any) -> Any:
    """Apply an elementwise function to the components of vectors.

    A function that gives a tuple gives a tuple of vectors.

    >>> import numpy as np
    >>> each(lambda x, y: x + 2 * y, np.asarray([1.0, 2.0, 3.0]), np.ones(3)).tolist()
    [3.0, 4.0, 5.0]
    """
    if not isinstance(vectors[0], tuple):
        return function(*vectors)
    found = tuple(map(function, *vectors))
    return tuple(zip(*found, strict=True)) if isinstance(found[0], tuple) else found


def parts(xp: Any, vector: Any) -> tuple[Any, Any, Any]:
    """Give the three components of a vector, each an array.

    >>> import numpy as np
    >>> [float(part) for part in parts(np, np.asarray([1.0, 2.0, 3.0]))]
    [1.0, 2.0, 3.0]
    """
    if isinstance(vector, tuple):
        return vector
    # the compatible ``unstack`` of torch calls what its vmap does not know
    x, y, z = vector.unbind() if framework_of(xp) == "torch" else xp.unstack(vector)
    return x, y, z


def dot(xp: Any, u: Any, v: Any) -> Any:
    """Give the products of vectors, component by component, summed.

    >>> import numpy as np
    >>> float(dot(np, np.asarray([1.0, 2.0, 3.0]), np.asarray([1.0, 10.0, 100.0])))
    321.0
    """
    products = each(lambda x, y: x * y, u, v)
    if isinstance(products, tuple):
        x, y, z = products
        return x + y + z
    return xp.sum(products, axis=0)


def turned(xp: Any, matrices: Any, vector: Any) -> Any:
    """Multiply vectors by matrices (n, 3, 3); components (1, ...) become (n, ...).

    >>> import numpy as np
    >>> matrices = np.asarray([2 * np.eye(3), np.ones((3, 3))])
    >>> x, y, z = turned(np, matrices, vector(np, np.asarray([1.0, 2.0, 3.0]), (1,)))
    >>> x.tolist(), y.tolist(), z.tolist()
    ([2.0, 6.0], [4.0, 6.0], [6.0, 6.0])
    """
    if framework_of(xp) == "jax":
        return _turned_in_jax()(matrices, vector)
    return _turned(xp, matrices, vector)


def _turned(xp: Any, matrices: Any, v: Any) -> Any:
    x, y, z = parts(xp, v)
    columns = parts(xp, xp.permute_dims(matrices, (2, 1, 0)))
    axes = (vector(xp, column, (-1, *(1,) * (x.ndim - 1))) for column in columns)
    return each(lambda a, b, c: a * x + b * y + c * z, *axes)


@lru_cache
def _turned_in_jax() -> Callable[[Any, Any], Any]:
    """Give the same by matrix products where gradients are taken, and gradients likewise.

    XLA works products out once. Otherwise each of ten loops would begin from the vectors, and each
    of nine sums with the gradient of a component. An image alone is less memory without.
    """
    jax = import_module("jax")
    xp = jax.numpy

    def forward(matrices: Any, vector: Any) -> Any:
        columns = xp.reshape(xp.stack(vector), (3, -1))
        rows = xp.matmul(xp.reshape(matrices, (-1, 3)), columns, precision="highest")
        shape = (matrices.shape[0], 3, *vector[0].shape[1:])
        return tuple(xp.unstack(xp.reshape(rows, shape), axis=1)), (matrices, vector)

    def backward(kept: Any, slopes: Any) -> Any:
        matrices, vector = kept
        rows = xp.reshape(xp.stack(slopes, axis=1), (3 * matrices.shape[0], -1))
        columns = xp.reshape(xp.stack(vector), (3, -1))
        by_matrices = xp.matmul(rows, columns.T, precision="highest")
        by_vector = xp.matmul(xp.reshape(matrices, (-1, 3)).T, rows, precision="highest")
        return (
            xp.reshape(by_matrices, matrices.shape),
            tuple(xp.reshape(part, vector[0].shape) for part in by_vector),
        )

    product = jax.custom_vjp(partial(_turned, xp))
    product.defvjp(forward, backward)
    return cast("Callable[[Any, Any], Any]", product)
