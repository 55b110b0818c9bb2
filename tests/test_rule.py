"""All leaves of a method at once: what is stacked, and that it changes nothing."""

import numpy as np
import pytest

import zomopi_core as zo
from zomopi_core import _arrays, subspace


def losses_of(method, seed=0):
    return np.random.default_rng(seed).standard_normal(method.evaluations_per_step)


def arrays_of(tree):
    """Return the arrays of a state, or of what a part keeps."""
    if isinstance(tree, tuple):
        return [x for part in tree for x in arrays_of(part)]
    return [] if tree is None else [tree]


class KeysOf:
    """A sampler that keeps the keys of its draws."""

    def __init__(self, xp):
        self.sampler, self.keys = zo.HostSampler(0, xp), set()

    def normal(self, draw, shape, *, dtype, device):
        self.keys.add((draw, shape))
        return self.sampler.normal(draw, shape, dtype=dtype, device=device)


METHODS = {
    "anchored": {},
    "haar": {"refresh": "haar"},
    "rank chosen": {"spectral_rank": "auto", "momentum": 0.9},
    "right side": {"side": "right"},
    "batches of their own": {"stacked": True},
    "all rows": {"rank": 9},
}


class TestStackedRefresh:
    """Leaves of one shape, refreshed as a stack where their library dispatches slowly."""

    def states(self, backend, options, stacks, monkeypatch):
        """Return the state after a refresh, and the keys of all draws."""
        monkeypatch.setattr(_arrays, "can_branch", lambda x: not stacks)
        sampler = KeysOf(backend.xp)
        options = {"rank": 4, "learning_rate": 0.1, "probes": 2} | options
        method = zo.zo_mopi(**options)
        rng = np.random.default_rng(1)
        shapes = {"a": (6, 2, 5), "b": (4, 7), "c": (6, 2, 5), "d": (6, 2, 5), "e": (3,)}
        state = method.init({n: backend.array(rng.standard_normal(s)) for n, s in shapes.items()},
                            sampler)  # fmt: skip
        state, _ = method.update(state, losses_of(method))
        return method.refresh(state), sampler.keys

    @pytest.mark.parametrize("name", METHODS)
    def test_is_that_of_each_alone(self, backend, name, monkeypatch):
        options = METHODS[name]
        alone, keys = self.states(backend, options, False, monkeypatch)
        found, keys_of_stacks = self.states(backend, options, True, monkeypatch)
        assert keys_of_stacks == keys
        for one, other in zip(alone.leaves, found.leaves, strict=True):
            for x, y in zip(arrays_of(one), arrays_of(other), strict=True):
                assert x.shape == y.shape
                # the same products, in batches: rounding of sums of 7 at most
                np.testing.assert_allclose(backend.numpy(y), backend.numpy(x), rtol=0, atol=1e-12)

    def test_factorizes_once_for_all(self, monkeypatch):
        calls = []
        original = subspace.orthonormal_frame
        monkeypatch.setattr(
            subspace, "orthonormal_frame", lambda m: calls.append(m.shape) or original(m)
        )
        method = zo.zo_mopi(rank=2, learning_rate=0.1)
        state = method.init({f"w{i}": np.ones((5, 4)) for i in range(40)})
        calls.clear()
        method.refresh(state)
        assert calls == [(5, 2)] * 40  # NumPy gains nothing by a stack
        calls.clear()
        monkeypatch.setattr(_arrays, "can_branch", lambda x: False)
        method.refresh(state)
        assert calls == [(40, 5, 2)]

    def test_a_basis_of_ones_own_is_asked_for_each_leaf(self, monkeypatch):
        monkeypatch.setattr(_arrays, "can_branch", lambda x: False)
        asked = []

        def basis(leaf, step):
            asked.append((leaf, step))
            return np.eye(5)[:, leaf : leaf + 1]

        method = zo.zo_mopi(rank=2, learning_rate=0.1, refresh="haar", basis=basis)
        state = method.init({"a": np.ones((5, 4)), "b": np.ones((5, 4))})
        state = method.refresh(state._replace(step=7))
        assert asked == [(0, 0), (1, 0), (0, 7), (1, 7)]
        for i, leaf in enumerate(state.leaves):
            assert leaf.frame[i, 0] == 1.0
