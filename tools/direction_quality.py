"""How well a direction made from loss values points along a fixed gradient.

The gradient is a 64 x 64 matrix of a given spectrum; the direction is made from the momentum of
leave-one-out estimates, 8 probes a step, and judged by the cosine of its angle to the gradient,
averaged over the last 160 of 1,600 evaluations. Compared are the leading singular directions with
equal weight (the best of k = 1, 2, 4, ... 32), singular values shrunk by the rule that is
optimal for a matrix in noise (Gavish and Donoho, "Optimal shrinkage of singular values", IEEE
Transactions on Information Theory 63, 2017), and guided probes, drawn with more variance in the
tangent space of the leading singular vectors. The figures of docs/benchmarks.md come from here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SIZE, PROBES, EVALUATIONS, LAST = 64, 8, 1600, 160
SPECTRA = {
    "rank 2": np.concatenate([[1.0, 0.7], np.zeros(SIZE - 2)]),
    "geometric": 0.7 ** np.arange(SIZE),
    "harmonic": 1 / np.arange(1, SIZE + 1),
    "flat": np.ones(SIZE),
}


@dataclass
class Guide:
    """Probes with variance a^2 in the tangent space at U V^T and b^2 outside of it.

    The mean variance over all entries is 1, and `part` of it lies in the tangent space alone.
    """

    left: np.ndarray
    right: np.ndarray
    part: float

    def split(self, probes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the parts of probes (N x m x n) inside and outside of the tangent space."""
        u, v = self.left, self.right
        rows, columns = u @ (u.T @ probes), (probes @ v) @ v.T
        inside = rows + columns - u @ (u.T @ columns)
        return inside, probes - inside

    @property
    def variances(self) -> tuple[float, float]:
        """a^2 and b^2."""
        k = self.left.shape[1]
        ratio = SIZE**2 / (k * (2 * SIZE - k))
        return 1 - self.part + self.part * ratio, 1 - self.part


def estimate(
    gradient: np.ndarray, generator: np.random.Generator, guide: Guide | None
) -> tuple[np.ndarray, float]:
    """Return a leave-one-out estimate of the gradient, unbiased, and its noise per entry."""
    probes = generator.standard_normal((PROBES, SIZE, SIZE))
    weights = probes
    if guide is not None:
        inside, outside = guide.split(probes)
        a2, b2 = guide.variances
        probes = np.sqrt(a2) * inside + np.sqrt(b2) * outside
        weights = inside / np.sqrt(a2) + outside / np.sqrt(b2)
    c = np.einsum("ij,nij->n", gradient, probes)
    c -= c.mean()
    return np.einsum("n,nij->ij", c, weights) / (PROBES - 1), float(c @ c) / (PROBES - 1) ** 2


def shrunk(values: np.ndarray, noise: float) -> np.ndarray:
    """Return singular values of a square matrix, shrunk for the Frobenius norm."""
    y = values / (noise * np.sqrt(SIZE))
    return np.where(y > 2, np.sqrt(np.maximum((y**2 - 2) ** 2 - 4, 0)) / np.maximum(y, 1), 0.0)


def cosines(
    spectrum: np.ndarray, memory: int, *, part: float = 0.0, k: int = 1
) -> tuple[float, float]:
    """Return the mean cosines of the best equal directions and of the shrunk momentum."""
    generator = np.random.default_rng(0)
    q, p = (np.linalg.qr(generator.standard_normal((SIZE, SIZE)))[0] for _ in range(2))
    gradient = (q * (spectrum / np.linalg.norm(spectrum))) @ p.T
    beta, momentum, level = 1 - PROBES / memory, np.zeros((SIZE, SIZE)), 0.0
    guide, found = None, []
    for step in range(1, EVALUATIONS // PROBES + 1):
        new, noise = estimate(gradient, generator, guide)
        momentum = beta * momentum + (1 - beta) * new
        level = 0.9 * level + 0.1 * noise
        u, s, vt = np.linalg.svd(momentum)
        if part:
            guide = Guide(u[:, :k], vt[:k].T, part)
        if step * PROBES <= EVALUATIONS - LAST:
            continue
        bias = 1 - beta**step
        weight = (1 - beta) / (1 + beta) * (1 - beta ** (2 * step)) / bias**2
        along = np.einsum("ij,ik,kj->k", gradient, u, vt)  # of each singular direction
        equal = max(along[:j].sum() / np.sqrt(j) for j in (1, 2, 4, 8, 16, 32))
        values = shrunk(s / bias, np.sqrt(level * weight))
        length = np.linalg.norm(values)
        found.append((equal, along @ values / length if length else 0.0))
    return tuple(np.mean(found, axis=0))


def main() -> None:
    """Print both tables."""
    print("spectrum    memory  equal  shrunk")
    for name, spectrum in SPECTRA.items():
        for memory in (160, 320):
            equal, optimal = cosines(spectrum, memory)
            print(f"{name:10}  {memory:6}  {equal:5.3f}  {optimal:6.3f}")
    print("\nspectrum    memory  equal  guided: best of nine, and how many are better than equal")
    for name, spectrum in SPECTRA.items():
        for memory in (160, 320, 640):
            equal, _ = cosines(spectrum, memory)
            guided = [
                cosines(spectrum, memory, part=part, k=k)[0]
                for k in (2, 4, 8)
                for part in (0.3, 0.5, 0.8)
            ]
            better = sum(value > equal for value in guided)
            print(f"{name:10}  {memory:6}  {equal:5.3f}  {max(guided):5.3f}  {better}")


if __name__ == "__main__":
    main()
