"""Where detector, beam and crystal stand: what the kernel `bragg` takes, in array code.

Every number may be a Python float, an array of any framework or a traced value; results are
differentiable with respect to each. The frame: the beam travels along x; the fast axis of the
detector is z, its slow axis -y, its normal x; two-theta turns about -z, the spindle is z.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any, cast

import numpy as np
from array_api_compat import array_namespace, device, is_array_api_obj
from numpy.typing import NDArray

from stowplan.adapters import framework_of, get_adapter
from stowplan.adapters.interface import TracingAdapter
from stowplan.errors import DataError, FrameworkError
from stowplan.recipes.bragg_experiment import Beam, Crystal, Detector, Sources
from stowplan.recipes.known import is_count, known_values, refuse_numbers, widest

__all__ = [
    "arrays_of",
    "auto_oversample",
    "first_floating",
    "kernel_arguments",
    "mosaic_rotations",
    "pixel_columns",
]

DETECTOR = ("pixel_size", "distance", "rotation", "two_theta", "beam_center")
CRYSTAL = ("cell", "misset", "mosaic", "phi", "oscillation")
"""Numbers that geometry is worked out from."""
BEAM, TWO_THETA_AXIS = (1.0, 0.0, 0.0), (0.0, 0.0, -1.0)
SPINDLE = POLARIZATION_AXIS = (0.0, 0.0, 1.0)


def kernel_arguments(
    detector: Detector, beam: Beam, crystal: Crystal, *, dmin: Any = 0.0, like: Any = None
) -> dict[str, Any]:
    """Give what all pixels share: the keyword arguments of the kernel `bragg.intensity`.

    Parameters
    ----------
    detector, beam, crystal
        What each array is computed from stays on its framework until the end, so that plain numbers
        are worked out in double precision.
    dmin : number
        Leave out what scatters beyond this spacing in Å.
    like : array, optional
        Framework, floating dtype and device of all results; by default those of the first array
        among the parameters that is not NumPy's, or NumPy float64.

    Returns
    -------
    dict
        Arrays and static parameters; ``intensity(slow, fast, **shared)`` gives photons.

    Raises
    ------
    DataError
        For a `dmin` below 0, and for ``"auto"`` where traced values decide.
    FrameworkError
        For arrays of two frameworks; NumPy's go with any other.

    Examples
    --------
    >>> from stowplan.kernels.bragg import intensity
    >>> shared = kernel_arguments(
    ...     Detector((64, 64)), Beam(6.2), Crystal((100, 100, 100, 90, 90, 90))
    ... )
    >>> float(intensity(np.asarray(32.0), np.asarray(32.0), **shared).round(2))
    154.65
    """
    refuse_numbers("kernel_arguments", "dmin", dmin, (), least=0, cure="Give Å, or 0 for none.")
    if like is None:
        like = first_floating([detector, beam, crystal, dmin])
    interpolation = crystal.resolved_interpolation()
    oversample = detector.oversample
    if oversample == "auto":
        oversample = auto_oversample(detector, beam, crystal)
    table, minima = None, (0, 0, 0)
    if interpolation != "constant" and crystal.table is not None:
        table, lowest = crystal.table
        minima = (int(lowest[0]), int(lowest[1]), int(lowest[2]))
    arrays = {
        **_at_once(_detector_arrays, _numbers(detector, DETECTOR), *detector.shape),
        **_at_once(_beam_arrays, _beam_numbers(beam), beam.dispersion_steps),
        **_at_once(_lattices, _numbers(crystal, CRYSTAL), crystal.phi_steps, crystal.convention),
        "cells": crystal.cells,
        "fluence": beam.fluence,
        "polarization": beam.polarization,
        "table": table,
        "default_factor": crystal.default_factor,
        "fudge": crystal.fudge,
        "dmin": dmin,
    }
    if beam.polarization is None:
        del arrays["polarization"], arrays["polarization_axis"]
    return {
        **{name: None if value is None else _array(value, like) for name, value in arrays.items()},
        "oversample": int(oversample),
        "interpolation": interpolation,
        "minima": minima,
        "shape": crystal.shape,
        "point_pixel": bool(detector.point_pixel),
        "polarized": beam.polarization is not None,
    }


def auto_oversample(detector: Detector, beam: Beam, crystal: Crystal) -> int:
    """Give sub-pixels enough for three samples of the narrowest peak, the rule of nanoBragg.

    ceil(3 max(N a) / (wavelength distance / pixel_size)), at the shortest wavelength.

    Raises
    ------
    DataError
        Where a traced value decides.

    Examples
    --------
    >>> cubic = Crystal((100, 100, 100, 90, 90, 90), cells=(50, 50, 50))
    >>> auto_oversample(Detector((256, 256)), Beam(1.0), cubic)
    15
    """
    wavelengths = _beam_arrays(_beam_numbers(beam), beam.dispersion_steps)["wavelengths"]
    known = {
        "pixel_size": known_values(detector.pixel_size),
        "distance": known_values(detector.distance),
        "wavelength": known_values(wavelengths),
        "cell": known_values(crystal.cell),
        "cells": known_values(crystal.cells),
    }
    given = {name: value for name, value in known.items() if value is not None}
    if len(given) < len(known):
        traced = ", ".join(name for name in known if name not in given)
        raise DataError(
            f"auto_oversample: traced: {traced}; the number of sub-pixels is part of the compiled "
            "code, so it must be known. Give it: oversample=2."
        )
    size = float(np.max(given["cells"] * given["cell"][:3]))
    spacing = float(given["wavelength"].min() * given["distance"] / given["pixel_size"])
    return max(1, math.ceil(3 * size / spacing))


def mosaic_rotations(spread: Any, domains: int, seed: int = 0) -> Any:
    """Give rotations of mosaic domains, differentiable in their spread.

    Each turns about an axis drawn evenly from the sphere, by an angle drawn from a normal
    distribution of width `spread`; the first domain is not turned, as in nanoBragg.

    Parameters
    ----------
    spread : number
        In degrees; its framework, dtype and device are those of the result.
    domains : int
        Number of domains, at least 1.
    seed : int
        Of NumPy's generator: the same axes and normal angles on every framework.

    Returns
    -------
    array (domains, 3, 3)

    Raises
    ------
    DataError
        For no domains, or a spread below 0.

    Examples
    --------
    >>> rotations = mosaic_rotations(0.5, 4, seed=1)
    >>> rotations.shape, float(np.linalg.det(rotations[3]).round(12))
    ((4, 3, 3), 1.0)
    """
    if not is_count(domains):
        raise DataError(f"mosaic_rotations: domains={domains!r}; it must be a positive integer.")
    refuse_numbers("mosaic_rotations", "spread", spread, (), least=0, cure="Give degrees.")
    draws = np.random.default_rng(seed)
    axes = draws.normal(size=(domains, 3))
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    angles = draws.normal(size=domains)
    angles[0] = 0.0
    cross = _cross_matrices(axes)
    numbers = {"spread": spread, "angles": angles, "cross": cross, "square": cross @ cross}
    return _array(_at_once(_mosaic, numbers), first_floating([spread]))


def pixel_columns(detector: Detector, mask: Any = None) -> dict[str, NDArray[np.float64]]:
    """Give the columns of the kernel: slow and fast index of every pixel, row after row.

    Parameters
    ----------
    detector : Detector
    mask : bool array (slow, fast), optional
        True where the intensity is wanted.

    Raises
    ------
    DataError
        For a mask of another shape or dtype.

    Examples
    --------
    >>> pixel_columns(Detector((2, 2)), np.array([[True, False], [True, True]]))
    {'slow': array([0., 1., 1.]), 'fast': array([0., 0., 1.])}
    """
    if mask is None:
        mask = np.ones(detector.shape, np.bool_)
    mask = np.asarray(mask)
    if mask.shape != tuple(detector.shape) or mask.dtype != np.bool_:
        raise DataError(
            f"pixel_columns: the mask has shape {mask.shape} and dtype {mask.dtype}; a bool array "
            f"of the detector's shape is needed, {tuple(detector.shape)}."
        )
    slow, fast = np.nonzero(mask)
    return {"slow": slow.astype(np.float64), "fast": fast.astype(np.float64)}


def _mosaic(numbers: dict[str, Any]) -> Any:
    """Rotations of mosaic domains (domains, 3, 3)."""
    like = _working_array(numbers)
    degrees = _array(numbers["spread"], like) * _array(numbers["angles"], like)
    return _rodrigues(like, numbers["cross"], numbers["square"], degrees)


def _numbers(value: Detector | Crystal, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: getattr(value, name) for name in names}


def _beam_numbers(beam: Beam) -> dict[str, Any]:
    sources = Sources(*(beam.sources or (None, None)))._asdict()
    return {"wavelength": beam.wavelength, "dispersion": beam.dispersion, **sources}


def _at_once(function: Callable[..., Any], numbers: dict[str, Any], *statics: Any) -> Any:
    """Call a function of numbers, as one program where each operation would be one.

    That is where a framework compiles and follows some of them for a gradient, outside of a
    program that holds them all.
    """
    arrays = list(arrays_of(numbers))
    frameworks = {framework_of([array]) for array in arrays}
    if len(frameworks) != 1 or all(map(_is_apart, arrays)):
        return function(numbers, *statics)
    adapter = get_adapter(str(frameworks.pop()))
    if not (adapter.compiles and all(map(adapter.has_values, arrays))):
        return function(numbers, *statics)
    like = first_floating(arrays)
    operands = {name: _operand(value, like) for name, value in numbers.items()}
    return cast("TracingAdapter", adapter).program(function, *statics)(operands)


def _operand(value: Any, like: Any) -> Any:
    """Give numbers of the host in the dtype of an array; arrays as they are, in tuples too."""
    if isinstance(value, list | tuple) and any(True for _ in arrays_of(value)):
        return tuple(_operand(part, like) for part in value)
    if value is None or any(True for _ in arrays_of(value)):
        return value
    return _on_host(value, like)


def _detector_arrays(numbers: dict[str, Any], *shape: int) -> dict[str, Any]:
    """Frame of the detector in metres."""
    like = _working_array(numbers)
    xp = array_namespace(like)
    pixel, distance = (1e-3 * _array(x, like) for x in map(numbers.get, ("pixel_size", "distance")))
    if numbers["beam_center"] is None:
        center = [(count + 1) * pixel / 2 for count in shape]
    else:
        given = 1e-3 * _array(numbers["beam_center"], like)
        center = [given[0], given[1]]
    before = _turn(like, _array(numbers["rotation"], like))
    swing = _rotation(like, TWO_THETA_AXIS, _array(numbers["two_theta"], like))
    after = _product(xp, swing, before)
    ratio = before[0, 0]  # beam . normal, the normal being R x
    close = xp.abs(ratio * distance)
    beam = _array(BEAM, like)
    fast, slow, normal = after[:, 2], -after[:, 1], after[:, 0]
    origin = close / ratio * beam - (center[0] + pixel / 2) * slow - (center[1] + pixel / 2) * fast
    return {
        "slow_axis": slow,
        "fast_axis": fast,
        "origin": origin,
        "pixel_size": pixel,
        "close_distance": xp.sum(origin * normal),
    }


def _beam_arrays(numbers: dict[str, Any], count: int) -> dict[str, Any]:
    """Sources of the beam, or the steps of its spectrum."""
    like = _working_array(numbers)
    xp = array_namespace(like)
    if numbers["wavelengths"] is not None:
        weights = numbers["weights"]
        directions, wavelengths = (
            _array(numbers[name], like) for name in ("directions", "wavelengths")
        )
        count = wavelengths.shape[0]
        directions = directions / xp.sqrt(xp.sum(directions**2, axis=1, keepdims=True))
        weights = _array(np.ones(count) if weights is None else weights, like)
    else:
        steps = _array(np.linspace(-0.5, 0.5, count) if count > 1 else [0.0], like)
        wavelengths = _array(numbers["wavelength"], like) * (
            1 + _array(numbers["dispersion"], like) / 100 * steps
        )
        directions = _array(np.tile(BEAM, (count, 1)), like)
        weights = _array(np.ones(count), like)
    axis = _array(POLARIZATION_AXIS, like)
    axis = axis - xp.sum(axis * directions[0, :]) * directions[0, :]
    return {
        "directions": directions,
        "wavelengths": wavelengths,
        "shares": weights / xp.sum(weights),
        "polarization_axis": axis / xp.sqrt(xp.sum(axis * axis)),
    }


def _lattices(numbers: dict[str, Any], count: int, convention: str) -> dict[str, Any]:
    """Real cell vectors as rows for every phi step and mosaic domain, (steps domains, 3, 3)."""
    like = _working_array(numbers)
    xp = array_namespace(like)
    misset = _turn(like, _array(numbers["misset"], like))
    vectors = _cell_vectors(xp, _array(numbers["cell"], like), misset, convention)
    steps = _array(np.arange(count) / count, like)
    phi = _array(numbers["phi"], like) + _array(numbers["oscillation"], like) * steps
    turns = _rotation(like, SPINDLE, phi)  # (steps, 3, 3)
    if numbers["mosaic"] is not None:
        turns = _product(xp, _array(numbers["mosaic"], like), turns[:, None, :, :])
        turns = xp.reshape(turns, (-1, 3, 3))
    return {"lattices": _product(xp, vectors, xp.matrix_transpose(turns))}


def _cell_vectors(xp: Any, cell: Any, misset: Any, convention: str) -> Any:
    """Rows a, b, c: a parallel to b* x c* and so on, of the lengths that the cell has."""
    lengths = cell[:3]
    angles = cell[3:] * (math.pi / 180)
    half = xp.sum(angles) / 2
    cos, sin = xp.cos(angles), xp.sin(angles)
    volume = 2 * xp.prod(lengths) * xp.sqrt(xp.abs(xp.sin(half) * xp.prod(xp.sin(half - angles))))
    turned, twice = (xp.roll(lengths, -n) for n in (1, 2))
    stars = turned * twice * sin / volume  # |a*|, |b*|, |c*|
    cos_next, cos_last = (xp.roll(cos, -n) for n in (1, 2))
    sin_next, sin_last = (xp.roll(sin, -n) for n in (1, 2))
    cos_stars = (cos_next * cos_last - cos) / (sin_next * sin_last)
    sin_gamma = xp.sqrt(1 - cos_stars[2] ** 2)
    height = 1 / lengths[2]  # of c* over the plane of a* and b*
    if convention == "nanobragg":
        height = stars[2] * volume / (xp.prod(lengths) * sin_gamma)
    zero = 0 * stars[0]
    rows = [
        [stars[0], zero, zero],
        [stars[1] * cos_stars[2], stars[1] * sin_gamma, zero],
        [
            stars[2] * cos_stars[1],
            stars[2] * (cos_stars[0] - cos_stars[1] * cos_stars[2]) / sin_gamma,
            height,
        ],
    ]
    reciprocal = xp.stack([xp.stack(row) for row in rows])
    reciprocal = _product(xp, reciprocal, xp.matrix_transpose(misset))
    following, last = (xp.roll(reciprocal, -n, axis=0) for n in (1, 2))
    real = _cross(xp, following, last)
    return real * (lengths / xp.sqrt(xp.sum(real * real, axis=1)))[:, None]


def _turn(like: Any, angles: Any) -> Any:
    """Rz Ry Rx of angles (3,) in degrees."""
    xp = array_namespace(like)
    about = [_rotation(like, axis, angles[n]) for n, axis in enumerate(np.eye(3))]
    return _product(xp, about[2], _product(xp, about[1], about[0]))


def _rotation(like: Any, axes: Any, degrees: Any) -> Any:
    """Rotations (..., 3, 3) about constant unit axes (..., 3), right-handed."""
    cross = _cross_matrices(axes)
    return _rodrigues(like, cross, cross @ cross, degrees)


def _cross_matrices(axes: Any) -> NDArray[np.float64]:
    """Rows e x n of axes n (..., 3)."""
    return np.cross(np.eye(3), np.asarray(axes, np.float64)[..., None, :])


def _rodrigues(like: Any, cross: Any, square: Any, degrees: Any) -> Any:
    """Rotations from cross products with their axes, once and twice."""
    xp = array_namespace(like)
    once, twice = _array(cross, like), _array(square, like)
    radians = degrees[..., None, None] * (math.pi / 180)
    return _array(np.eye(3), like) + xp.sin(radians) * once + (1 - xp.cos(radians)) * twice


def _product(xp: Any, a: Any, b: Any) -> Any:
    """Products of 3x3 matrices in full precision, which matmul does not keep on every device."""
    return xp.sum(a[..., :, :, None] * b[..., None, :, :], axis=-2)


def _cross(xp: Any, u: Any, v: Any) -> Any:
    """Cross products of rows."""
    u_next, u_last, v_next, v_last = (xp.roll(x, -n, axis=-1) for x in (u, v) for n in (1, 2))
    return u_next * v_last - u_last * v_next


def arrays_of(value: Any) -> Iterator[Any]:
    """Give the arrays in a detector, beam or crystal, or a list of them; NumPy's are numbers."""
    if isinstance(value, Detector | Beam | Crystal):
        value = [getattr(value, field.name) for field in fields(value)]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for part in value:
            yield from arrays_of(part)
    elif is_array_api_obj(value) and not isinstance(value, np.ndarray | np.generic):
        yield value


def first_floating(values: Any) -> Any:
    """Give the first floating one of the arrays in some values, which others are computed beside.

    Where all are integers, a zero in the widest dtype of the first one; without any, of NumPy.
    """
    arrays = list(arrays_of(values))
    for array in arrays:
        if array_namespace(array).isdtype(array.dtype, "real floating"):
            return array
    if not arrays:
        return np.zeros(())
    xp = array_namespace(arrays[0])
    return xp.zeros((), dtype=getattr(xp, widest(xp)), device=device(arrays[0]))


def _working_array(values: Any) -> Any:
    """Give an array beside which geometry is worked out.

    That is one of NumPy where a framework would compile each operation and follows none of the
    arrays for a gradient.
    """
    arrays = list(arrays_of(values))
    if arrays and all(map(_is_apart, arrays)):
        return np.zeros(())
    return first_floating(arrays)


def _is_apart(array: Any) -> bool:
    """Whether an array of a compiling framework is nothing but its values."""
    name = framework_of([array])
    return (
        name is not None and get_adapter(name).compiles and not get_adapter(name).is_traced(array)
    )


def _array(value: Any, like: Any) -> Any:
    """Give a number, a sequence of numbers or 0-d arrays, or an array beside another array."""
    xp = array_namespace(like)
    if isinstance(value, list | tuple) and any(True for _ in arrays_of(value)):
        return xp.stack([_array(part, like) for part in value])
    if is_array_api_obj(value) and not isinstance(value, np.ndarray | np.generic):
        if isinstance(like, np.ndarray) and _is_apart(value):
            return np.asarray(value, np.float64)
        if array_namespace(value) is not xp:
            raise FrameworkError(
                f"kernel_arguments: {type(value).__module__}.{type(value).__name__} beside "
                f"{type(like).__module__}.{type(like).__name__}. Give arrays of one framework, or "
                "numbers."
            )
        return xp.astype(value, like.dtype, copy=False)
    known = _on_host(value, like)
    adapter = get_adapter(framework_of([like]) or "numpy")
    place = adapter.device_of(like)  # of a traced array it is None
    return xp.asarray(known) if place is None else adapter.asarray(known, place)


def _on_host(value: Any, like: Any) -> NDArray[Any]:
    """Give numbers in the dtype of an array, rounded once."""
    return np.asarray(value, np.float64).astype(str(like.dtype).rpartition(".")[2])
