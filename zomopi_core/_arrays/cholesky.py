"""The inverse of a Cholesky factor, as each library finds it without waiting for its device."""

from __future__ import annotations

import importlib
import sys

import numpy as np

from .namespaces import Array, library, namespace, transposed


def inverse_cholesky_factor(gram: Array) -> Array | None:
    """Return R^-1 for ``R^T R = gram`` (..., k, k), upper triangular.

    Where `gram` is not positive definite the result is None on a host, and numbers without a
    meaning or NaN elsewhere; no device is waited for.
    """
    xp = namespace(gram)
    name = library(xp)
    if name == "torch":
        torch = sys.modules["torch"]
        factor, info = torch.linalg.cholesky_ex(gram)
        if gram.device.type == "cpu" and bool(torch.any(info)):
            return None
        identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        return torch.linalg.solve_triangular(factor, identity.expand_as(gram), upper=False).mT
    if name == "jax":
        jax = importlib.import_module("jax")
        factor = xp.linalg.cholesky(gram)
        identity = xp.broadcast_to(xp.eye(gram.shape[-1], dtype=gram.dtype), gram.shape)
        inverse = jax.scipy.linalg.solve_triangular(factor, identity, lower=True)
        return xp.matrix_transpose(inverse)
    try:
        factor = xp.linalg.cholesky(gram)
    except np.linalg.LinAlgError:
        return None
    return transposed(xp.linalg.inv(factor))
