"""What is wrong with the parameters, and what becomes of them."""

from __future__ import annotations

from collections.abc import Iterable


class PrecisionWarning(UserWarning):
    """A probe is too small to be seen in the floating-point format of the parameters."""


def other_number_of_arrays(found: int, wanted: int) -> ValueError:
    """Explain that parameters do not belong to what a method returned for others."""
    return ValueError(
        f"params holds {found} arrays, and the probes or the step were made for {wanted}; pass "
        "those of the same parameters"
    )


def wrong_parameters(value: object, name: str = "x0") -> TypeError:
    """Explain that parameters are neither an array nor a dict of arrays."""
    return TypeError(
        f"{name} must be an array or a dict of arrays, got {type(value).__name__}; pass a list or "
        f"a number as numpy.asarray({name}, dtype=float), other containers as a dict name -> array"
    )


def no_parameters() -> ValueError:
    """Explain that `x0` is a dict without entries."""
    return ValueError("x0 is an empty dict: there is nothing to optimise; pass at least one array")


def integer_parameters(name: str, dtype: object) -> TypeError:
    """Explain that a parameter has no floating-point dtype."""
    return TypeError(
        f"{name} has dtype {dtype}, which cannot hold a small real step; "
        "convert it to a floating-point dtype, for example float64"
    )


def complex_parameters(name: str, dtype: object) -> TypeError:
    """Explain that a parameter is complex."""
    return TypeError(
        f"{name} has the complex dtype {dtype}, whose real and imaginary parts are separate "
        "unknowns; pass a real view, for example numpy.stack([x.real, x.imag]), and put the "
        "complex array together inside fun"
    )


def empty_parameters(name: str, shape: tuple[int, ...]) -> ValueError:
    """Explain that a parameter has no entries."""
    return ValueError(f"{name} has shape {shape} and so no entries; leave it out of x0")


def nonfinite_parameters(name: str) -> ValueError:
    """Explain that a parameter holds NaN or infinity."""
    return ValueError(f"{name} holds NaN or infinity; start from finite numbers")


def mixed_libraries(names: Iterable[str]) -> TypeError:
    """Explain that the parameters come from several array libraries."""
    return TypeError(
        f"x0 mixes arrays of {', '.join(sorted(names))}; convert them all to one library"
    )


def mixed_devices(devices: Iterable[str]) -> ValueError:
    """Explain that the parameters live on several devices."""
    return ValueError(
        f"x0 mixes the devices {', '.join(sorted(devices))}; move all arrays to one device"
    )


def not_current_device(name: str, device: object, current: object) -> ValueError:
    """Explain that a library which computes on its current device would do so on another one."""
    return ValueError(
        f"{name} lives on {device}, while its library computes on {current}; make that device "
        "the current one around all calls, for CuPy by `with x0.device:`"
    )


def special_array(name: str, value: object) -> TypeError:
    """Explain that an array subclass would lose its meaning."""
    return TypeError(
        f"{name} is a {type(value).__name__}, whose mask or operators would be lost; pass "
        "numpy.asarray(x0) and restore them inside fun"
    )


def wrong_bounds(detail: str) -> ValueError:
    """Explain what is wrong with `bounds`."""
    return ValueError(
        f"bounds must be a pair (low, high) of numbers, arrays of the shape of x0, or dicts of "
        f"them, with low <= high: {detail}"
    )


def wrong_projection(name: str, detail: str) -> ValueError:
    """Explain that `project` returned something else than a point like x."""
    return ValueError(
        f"project must return the parameters with the shapes and dtypes it was given: "
        f"{name} {detail}"
    )


def wrong_gradient(name: str, detail: str) -> ValueError:
    """Explain that a gradient does not fit the parameters."""
    return ValueError(
        f"gradient must return arrays of the library and shapes of the parameters: {name} {detail}"
    )


def wrong_basis(detail: str) -> ValueError:
    """Explain that `basis` gave no frame."""
    return ValueError(
        f"basis {detail}; it takes the number of a leaf and the step, and returns directions as "
        "columns, as many as the rows that the frame sees"
    )


def invisible_probe(name: str, dtype: object, fraction: float) -> str:
    """Say that most entries of a probe vanish by rounding, and what to do."""
    return (
        f"{fraction:.0%} of the entries of {name} ({dtype}) do not change when the probe is "
        "added: smoothing is below their floating-point spacing, so differences of the loss are "
        "mostly rounding; raise smoothing, scale the parameters towards 1, or use a wider dtype"
    )


def not_dense() -> TypeError:
    """Say that a structured function used its argument like an array."""
    return TypeError(
        "fun gets a PerturbedMatrix because of structured=True; it supports P @ W, W @ P, P.T and "
        "rows; P.dense() makes an array of it"
    )


def not_rows(index: object) -> TypeError:
    """Something else than rows was taken of a perturbed matrix."""
    return TypeError(
        f"a PerturbedMatrix has rows only, by a slice, an integer or an integer array, got "
        f"{index!r:.60}; use P.T for columns or P.dense()"
    )
