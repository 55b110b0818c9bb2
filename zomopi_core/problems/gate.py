"""A small classic where methods for few unknowns should win: the pulses of a quantum gate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import _arrays
from .._arrays import Array, Namespace
from ._problem import Problem, constants


@dataclass(frozen=True, eq=False, kw_only=True)
class Gate(Problem):
    """Make a CNOT gate of two coupled spins with piecewise constant pulses.

    The Hamiltonian ``H = 2 pi J s_z s_z / 4 + sum_c x_ct S_c / 2`` (hbar = 1, s_z the Pauli matrix
    of each spin) has an Ising coupling J of 1 Hz, always on, and four controls: the x and y fields
    on either spin, with S_c the Pauli matrices and x_ct rad/s in slice t. The loss is the
    infidelity ``1 - |tr(C^H U)|^2 / 16`` between the gate C and the propagator U over one second,
    the product of ``exp(-i H_t dt)``; a global phase does not count.

    Attributes
    ----------
    x0 : array of shape (4, slices)
        Gaussian amplitudes of 1 rad/s, float64.
    drift : complex array of shape (4, 4)
        The coupling.
    controls : complex array of shape (4, 16)
        S_c / 2, each as a row.
    gate : complex array of shape (4, 4)
        C^H.
    duration : float
        Seconds of a slice.
    """

    drift: Array
    controls: Array
    gate: Array
    duration: float

    def propagator(self, amplitudes: Array) -> Array:
        """Return U (4 x 4), or the stack of those of a stack of pulses."""
        xp = _arrays.namespace(amplitudes)
        slices = xp.matrix_transpose(amplitudes)
        fields = xp.astype(slices, self.controls.dtype) @ self.controls
        hamiltonian = xp.reshape(fields, (*slices.shape[:-1], 4, 4)) + self.drift
        energies, states = xp.linalg.eigh(hamiltonian)
        angles = energies * -self.duration
        phases = xp.cos(angles) + 1j * xp.sin(angles)
        steps = (states * phases[..., None, :]) @ xp.conj(xp.matrix_transpose(states))
        while steps.shape[-3] > 1:  # neighbours pairwise, the later one from the left
            steps = steps[..., 1::2, :, :] @ steps[..., 0::2, :, :]
        return steps[..., 0, :, :]

    def _value(self, x: Array) -> Array:
        xp = _arrays.namespace(x)
        overlap = xp.sum(xp.matrix_transpose(self.gate) * self.propagator(x), axis=(-2, -1))
        return 1 - (xp.real(overlap) ** 2 + xp.imag(overlap) ** 2) / 16


def gate(xp: Namespace = np, *, device: Any = None, slices: int = 16, seed: int = 0) -> Gate:
    """Make the gate problem: four controls in 16 slices, 64 unknowns in float64 by default.

    Parameters
    ----------
    xp, device
        As in `digits`.
    slices : int
        A power of two.
    seed : int
        Of the initial pulses.

    Returns
    -------
    Gate

    Raises
    ------
    ValueError
        If `slices` is not a power of two.

    Notes
    -----
    A matrix of four rows has four singular values at most, so nothing is gained by its rank and
    `low_rank` is False. They hold 0.51, 0.49, 0 and 0 of the squared norm of the gradient at `x0`
    (seed 0), and less uneven shares later.

    References
    ----------
    N. Khaneja et al., "Optimal control of coupled spin dynamics: design of NMR pulse sequences by
    gradient ascent algorithms", Journal of Magnetic Resonance 172, 2005.

    Examples
    --------
    >>> from zomopi_core import problems
    >>> problem = problems.gate()
    >>> 0.5 < float(problem.exact(problem.x0)) <= 1
    True
    """
    if slices < 1 or slices & (slices - 1):
        raise ValueError(f"slices must be a power of two, got {slices}")
    x, y, z, one = _paulis()
    controls = [np.kron(x, one), np.kron(y, one), np.kron(one, x), np.kron(one, y)]
    cnot = np.eye(4)[[0, 1, 3, 2]].astype(complex)
    drift = 2 * math.pi * np.kron(z, z) / 4
    start = np.random.default_rng(seed).standard_normal((4, slices))
    arrays = constants(
        xp, device, start, drift, np.stack(controls).reshape(4, 16) / 2, np.conj(cnot.T)
    )
    return Gate(
        name="gate",
        summary="pulses of a CNOT gate of two spins",
        loss_name="infidelity",
        x0=arrays[0],
        # A fidelity of 99 %. BFGS with finite differences took 6,436, 6,696 and 6,176 queries
        # (seeds 0, 1, 2); zo_mopi with its defaults came to 0.16, 0.29 and 0.14 in 10,000.
        target=1e-2,
        low_rank=False,
        drift=arrays[1],
        controls=arrays[2],
        gate=arrays[3],
        duration=1 / slices,
    )


def _paulis() -> tuple[Any, Any, Any, Any]:
    return (
        np.asarray([[0, 1], [1, 0]], dtype=complex),
        np.asarray([[0, -1j], [1j, 0]]),
        np.diag([1, -1]).astype(complex),
        np.eye(2, dtype=complex),
    )
