"""Focusing light through a scattering medium: the phase mask that undoes what the medium does."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from .. import _arrays
from .._arrays import Array, Namespace
from ._problem import Problem, constants, on_host

#: metres
WAVELENGTH, APERTURE, DISTANCE = 633e-9, 4.096e-3, 0.25
# modes of a screen along an axis, in cycles an aperture
_CYCLES = 6


@dataclass(frozen=True, eq=False, kw_only=True)
class PhaseMask(Problem):
    """Focus a laser beam through two thin scattering screens with a mask of phases.

    A Gaussian beam (633 nm, waist 1.4 mm) meets a square phase mask of 4.096 mm, runs 0.25 m to a
    thin screen, 0.25 m to another, and through a lens onto a camera in its focal plane. Each
    screen multiplies the field by exp(i phase) with a smooth random phase; between them the field
    propagates by the angular spectrum. Only the intensity of one pixel is measured, on the axis.
    The loss is 1 - I / I_best, with I_best the intensity behind the mask that conjugates the
    phases with which the parts of the mask arrive at the pixel: no mask of phases does better.

    The fields are periodic, as FFTs have them; the beam has faded at the edges.

    Attributes
    ----------
    x0 : array of shape (size, size)
        Phases in radians, float32: a flat mask but for Gaussian errors of 0.05 rad.
    beam : complex array of shape (size, size)
        Field before the mask, of unit power.
    screens : complex array of shape (2, size, size)
        Transmissions of the screens.
    transfer : complex array of shape (size, size)
        Transfer function of the free path before each screen.
    best_amplitude : float
        Square root of I_best, in units in which the mean over the camera is 1 / size^2.
    solution : array of shape (size, size)
        The conjugating mask.
    photons : float or None
        Mean count of the pixel's detector at I_best; None for an exact reading.
    seed : int
        Of the detector's counts.
    """

    beam: Array
    screens: Array
    transfer: Array
    best_amplitude: float
    solution: Array
    photons: float | None
    seed: int

    def field(self, phases: Array) -> Array:
        """Return the complex field behind the last screen, of a mask or a stack of masks."""
        xp = _arrays.namespace(phases)
        # e^{i phase} from real functions: complex exponentials of arrays differ between libraries
        mask = xp.cos(phases) + 1j * xp.sin(phases)
        light = self.beam * mask
        for i in range(2):
            light = xp.fft.ifftn(xp.fft.fftn(light, axes=(-2, -1)) * self.transfer, axes=(-2, -1))
            light = light * self.screens[i, ...]
        return light

    def camera(self, phases: Array) -> Array:
        """Return the intensities on the camera over I_best, the axis in the middle."""
        xp = _arrays.namespace(phases)
        far = xp.fft.fftn(self.field(phases), axes=(-2, -1)) / self.best_amplitude
        return xp.fft.fftshift(xp.real(far) ** 2 + xp.imag(far) ** 2, axes=(-2, -1))

    def _focus(self, phases: Array) -> Array:
        xp = _arrays.namespace(phases)
        # the pixel on the axis of a lens's focal plane sees the sum of the field
        amplitude = xp.sum(self.field(phases), axis=(-2, -1)) / self.best_amplitude
        return xp.real(amplitude) ** 2 + xp.imag(amplitude) ** 2

    def _value(self, x: Array) -> Array:
        return 1 - self._focus(x)

    @cached_property
    def _generator(self) -> np.random.Generator:
        return np.random.default_rng([self.seed, 1])  # a stream apart from the medium's

    def fun(self, x: Array) -> Any:
        """Return the loss; of a detector that counts photons, from a new Poisson count."""
        if self.photons is None:
            return self.exact(x)
        light = 1 - on_host(self.exact(x))
        count = self._generator.poisson(np.maximum(light, 0.0) * self.photons)
        return 1 - count / self.photons


def phase_mask(
    xp: Namespace = np,
    *,
    device: Any = None,
    size: int = 64,
    strength: float = 1.0,
    brighter: float | None = None,
    photons: float | None = None,
    seed: int = 0,
) -> PhaseMask:
    """Make the phase mask problem: 64 x 64 unknowns in float32 by default.

    Parameters
    ----------
    xp, device
        As in `digits`.
    size : int
        Pixels along a side of the mask, 48 or more; the optics are the same for every size.
    strength : float
        Root mean square of each screen's phase, in radians.
    brighter : float, optional
        Intensity at the target over that at `x0`; by default the target is half the best
        intensity.
    photons : float, optional
        Mean count of the detector at the best focus: `fun` then draws a Poisson count at each
        call, from a generator of the problem; by default the reading is exact.
    seed : int
        Of the medium, of the initial mask and of the photons.

    Returns
    -------
    PhaseMask

    Notes
    -----
    The gradient is of low rank because the phases vary smoothly over the mask. Of its squared norm
    four singular values hold 0.92 at `x0` and 0.89 at the target of gradient descent, one 0.51 and
    0.49 (seed 0); at the target of a run of `zo_mopi`, which makes the mask rough, four hold 0.56
    (seed 2).

    A phase's natural size is a radian, which is more than the default learning rate of `zo_mopi`
    assumes: with it the losses after 10,000 queries were 0.53, 0.75 and 0.66 (seeds 0, 1, 2).

    References
    ----------
    I. M. Vellekoop, A. P. Mosk, "Focusing coherent light through opaque strongly scattering
    media", Optics Letters 32(16), 2007. J. W. Goodman, "Introduction to Fourier Optics": the
    angular spectrum.

    Examples
    --------
    >>> from zomopi_core import problems
    >>> problem = problems.phase_mask()
    >>> abs(float(problem.exact(problem.solution))) < 1e-4
    True
    """
    random = np.random.default_rng(seed)
    places = (np.arange(size) - (size - 1) / 2) / size  # in apertures
    profile = np.exp(-((places * APERTURE / 1.4e-3) ** 2))
    beam = np.outer(profile, profile)
    beam /= np.sqrt(np.sum(beam**2))
    screens = np.exp(1j * strength * np.stack([_screen(places, random) for _ in range(2)]))
    waves = np.fft.fftfreq(size, APERTURE / size) * WAVELENGTH  # direction cosines
    axial = np.sqrt(np.maximum(1 - waves[:, None] ** 2 - waves**2, 0.0))
    transfer = np.exp(2j * math.pi * DISTANCE / WAVELENGTH * (axial - 1))
    # Reciprocity: light sent from the pixel arrives at the mask with the weights that a field at
    # the mask has in the pixel.
    back = np.ones((size, size), dtype=complex)
    for screen in screens[::-1]:
        back = np.fft.ifft2(np.fft.fft2(back * screen) * transfer)
    weights = back * beam
    start = (0.05 * random.standard_normal((size, size))).astype(np.float32)
    best = np.sum(np.abs(weights))
    light = float(np.abs(np.sum(weights * np.exp(1j * start))) ** 2 / best**2)
    arrays = constants(
        xp,
        device,
        beam.astype(np.complex64),
        screens.astype(np.complex64),
        transfer.astype(np.complex64),
        (-np.angle(weights)).astype(np.float32),
        start,
    )
    large = "-large" if size >= 320 else ""
    summary = "focus through a scattering medium"
    return PhaseMask(
        name=f"phase-mask{large}" + ("" if photons is None else "-noisy"),
        summary=summary if photons is None else f"{summary}, photons",
        loss_name="1 - intensity over the best",
        x0=arrays[4],
        # Half of the best intensity is where a focus begins to outshine what is scattered. zo_mopi
        # with a learning rate of 0.1 took 2,754, 7,690 and 4,298 queries (seeds 0, 1, 2).
        target=0.5 if brighter is None else 1 - brighter * light,
        low_rank=True,
        noisy=photons is not None,
        beam=arrays[0],
        screens=arrays[1],
        transfer=arrays[2],
        best_amplitude=float(best),
        solution=arrays[3],
        photons=photons,
        seed=seed,
    )


def _screen(places: Any, random: np.random.Generator) -> Any:
    """Return a smooth random phase of unit variance: the same function for every grid."""
    cycles = np.arange(-_CYCLES, _CYCLES + 1)
    waves = np.exp(2j * math.pi * places[:, None] * cycles)
    # a Gaussian correlation, whose spectrum falls to 1/e at 2.5 cycles an aperture
    envelope = np.exp(-(cycles**2) / 2.5**2 / 2)
    spectrum = np.outer(envelope, envelope)
    spectrum[_CYCLES, _CYCLES] = 0.0  # a constant phase does nothing
    spectrum /= np.sqrt(np.sum(spectrum**2))
    numbers = random.standard_normal((2, *spectrum.shape))
    return np.real(waves @ ((numbers[0] + 1j * numbers[1]) * spectrum) @ waves.T)
