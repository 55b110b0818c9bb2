"""What compiles, and with how many digits it multiplies: JAX, of the libraries at hand."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import array_api_compat as compat
import numpy as np

from .namespaces import Array

_F = TypeVar("_F", bound=Callable[..., Any])


def compiled(function: _F, like: Array, *, donate: bool = False) -> _F:
    """Return `function` compiled where the library of `like` compiles, else as it is.

    With `donate` the memory of the first argument is taken over for the results; whoever still
    holds its arrays finds them deleted.
    """
    if isinstance(like, np.ndarray) or not compat.is_jax_array(like):
        return function
    if donate:
        return _jit_donating(function)  # type: ignore[no-any-return]
    owner = getattr(function, "__self__", None)
    try:
        hash(owner)
    except TypeError:
        return _jit.__wrapped__(function, None)  # type: ignore[no-any-return]
    result: _F = _jit(function if owner is None else function.__func__, owner)  # type: ignore[attr-defined]
    return result


# Equal owners of a method meet here again, and what two runs share is compiled once.
@functools.lru_cache(maxsize=64)
def _jit(function: Callable[..., Any], owner: Any) -> Any:
    import jax

    def precise(*arguments: Any) -> Any:
        with _full_precision():
            return function(*arguments) if owner is None else function(owner, *arguments)

    return jax.jit(precise)


@functools.lru_cache(maxsize=16)
def _jit_donating(function: Callable[..., Any]) -> Any:
    import jax

    def precise(*arguments: Any) -> Any:
        with _full_precision():
            return function(*arguments)

    return jax.jit(precise, donate_argnums=0, keep_unused=True)


_NOTHING = contextlib.nullcontext()


def full_precision(like: Array) -> Any:
    """Return a context in which matrix products keep the digits of their arguments.

    On recent GPUs JAX multiplies float32 matrices with 10 bits of mantissa unless told otherwise;
    the other libraries do so only where they are asked to.
    """
    if isinstance(like, np.ndarray) or not compat.is_jax_array(like):
        return _NOTHING
    return _full_precision()


def _full_precision() -> Any:
    return sys.modules["jax"].default_matmul_precision("float32")


_STATIC: set[type] = set()


def register_static(cls: type, like: Array) -> None:
    """Let instances of `cls` pass as constants through what the library of `like` compiles."""
    if cls in _STATIC or not compat.is_jax_array(like):
        return
    import jax

    jax.tree_util.register_static(cls)
    _STATIC.add(cls)
