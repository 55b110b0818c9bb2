"""Real problems to try methods on, written for any namespace."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import _arrays, errors
from ._arrays import Array, Namespace

Params = dict[str, Array]


@dataclass(frozen=True)
class Digits:
    """Two-layer classifier of scikit-learn's handwritten digits, a quarter of them held out.

    ``logits = W2 relu(W1 x + b1) + b2`` with W1 (hidden x 64), b1 (hidden), W2 (10 x hidden),
    b2 (10); the loss is the mean cross-entropy over all training images.

    Attributes
    ----------
    x0 : dict of arrays
        ``{"W1", "b1", "W2", "b2"}``, float32: Gaussian of variance 1 / inputs, biases zero.
    train_images, test_images : arrays of shape (images, 64)
        Standardised with the mean and deviation of the training images.
    train_labels, test_labels : arrays of shape (images, 10)
        One where the digit is, else zero.
    """

    x0: Params
    train_images: Array
    train_labels: Array
    test_images: Array
    test_labels: Array

    @staticmethod
    def logits(params: Params, images: Array) -> Array:
        """Return the scores (..., images, 10) of the classifier, or of a stack of them."""
        xp = _arrays.namespace(images)
        hidden = images @ xp.matrix_transpose(params["W1"]) + params["b1"][..., None, :]
        hidden = xp.where(hidden > 0, hidden, 0.0)
        scores: Array = hidden @ xp.matrix_transpose(params["W2"]) + params["b2"][..., None, :]
        return scores

    def loss(self, params: Params) -> Array:
        """Return the mean cross-entropy on the training images, of each classifier of a stack."""
        return _cross_entropy(self.logits(params, self.train_images), self.train_labels)

    def accuracy(self, params: Params, part: str) -> float:
        """Return the fraction of ``"train"`` or ``"test"`` images that are classified rightly."""
        images, labels = (
            (self.train_images, self.train_labels)
            if part == "train"
            else (self.test_images, self.test_labels)
        )
        xp = _arrays.namespace(images)
        right = xp.argmax(self.logits(params, images), axis=-1) == xp.argmax(labels, axis=-1)
        return float(xp.mean(xp.astype(right, xp.float32)))

    def pictures(self, params: Params, count: int) -> tuple[Any, Any, Any]:
        """Return `count` test images (8 x 8), their predictions and their digits, for NumPy."""
        images, labels = _raw_digits()[2:]
        scores = _arrays.to_host(self.logits(params, self.test_images))
        return images[:count].reshape(-1, 8, 8), scores.argmax(-1)[:count], labels[:count]


def _cross_entropy(logits: Array, labels: Array) -> Array:
    xp = _arrays.namespace(logits)
    shifted = logits - xp.max(logits, axis=-1, keepdims=True)
    partition = xp.log(xp.sum(xp.exp(shifted), axis=-1))
    return xp.mean(partition - xp.sum(shifted * labels, axis=-1), axis=-1)


def _raw_digits() -> tuple[Any, Any, Any, Any]:
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise errors.missing_extra("scikit-learn", "cli") from error
    data = load_digits()
    images, held_out, labels, held_out_labels = train_test_split(
        data.data, data.target, test_size=0.25, random_state=0, stratify=data.target
    )
    return images, labels, held_out, held_out_labels


def digits(xp: Namespace = np, *, device: Any = None, hidden: int = 32, seed: int = 0) -> Digits:
    """Make the digits problem with arrays of a namespace.

    Parameters
    ----------
    xp : namespace
        Where its arrays live: ``numpy``, ``torch`` through array-api-compat, and so on.
    device : device, optional
        As the library names it.
    hidden : int
        Width of the hidden layer.
    seed : int
        Of the initial weights; the split of the images is always the same.

    Returns
    -------
    Digits

    Raises
    ------
    ImportError
        If scikit-learn, which brings the images, is not installed (extra ``cli``).

    Examples
    --------
    >>> import zomopi_core.problems
    >>> problem = zomopi_core.problems.digits()
    >>> round(float(problem.loss(problem.x0)), 1)
    2.3
    """
    images, labels, held_out, held_out_labels = _raw_digits()
    mean, deviation = images.mean(axis=0), images.std(axis=0) + 1.0
    random = np.random.default_rng(seed)
    arrays = {
        "W1": random.standard_normal((hidden, 64)) / math.sqrt(64),
        "b1": np.zeros(hidden),
        "W2": random.standard_normal((10, hidden)) / math.sqrt(hidden),
        "b2": np.zeros(10),
    }

    def convert(values: Any) -> Array:
        return xp.asarray(values.astype(np.float32), device=device)

    return Digits(
        {name: convert(values) for name, values in arrays.items()},
        convert((images - mean) / deviation),
        convert(np.eye(10)[labels]),
        convert((held_out - mean) / deviation),
        convert(np.eye(10)[held_out_labels]),
    )
