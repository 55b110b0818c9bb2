"""Draws are pure functions of their whole key, on every library."""

import ctypes
import itertools
import random
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import zomopi_core as zo
from zomopi_core import draws, sampling
from zomopi_core._inverse_normal import inverse_normal

DRAW = zo.Draw("probe", 1, 7, 2)


def draw(backend, draw=DRAW, shape=(3, 5), seed=11, dtype="float64"):
    sampler = sampling.native_sampler(seed, backend.array([0.0]))
    values = sampler.normal(draw, shape, dtype=backend.dtype(dtype), device=backend.device)
    return backend.numpy(values)


class TestNativeSamplers:
    def test_same_key_same_bits(self, backend):
        assert np.array_equal(draw(backend), draw(backend))

    def test_every_part_of_the_key_matters(self, backend):
        keys = [
            zo.Draw(*key)
            for key in itertools.product(
                ("sketch", "probe", "right"), (0, 1), (0, 1, 2**31), (None, 0, 1)
            )
        ]
        values = {draw(backend, key).tobytes() for key in keys}
        assert len(values) == len(keys)

    def test_all_bits_of_the_seed_matter(self, backend):
        seeds = [0, 5, 5 + 2**32, 5 + 2**63, 2**64 - 1]
        assert len({draw(backend, seed=s).tobytes() for s in seeds}) == len(seeds)

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_shape_and_dtype(self, backend, dtype):
        values = draw(backend, shape=(2, 3, 4), dtype=dtype)
        assert values.shape == (2, 3, 4)
        assert values.dtype == dtype

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_moments(self, backend, dtype):
        z = draw(backend, shape=(40, 5000), dtype=dtype).astype(float)
        n = z.size
        # five standard deviations of each sample moment: a false alarm in a million runs
        for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
            assert abs(np.mean(z**power) - mean) < 5 * np.sqrt(variance / n)
        assert abs(np.mean(z[:, 1:] * z[:, :-1])) < 5 / np.sqrt(n)

    def test_blocks_of_neighbouring_steps_are_uncorrelated(self, backend):
        a, b = (draw(backend, zo.Draw("probe", 0, t, None), (50_000,)) for t in (0, 1))
        assert abs(np.mean(a * b)) < 5 / np.sqrt(50_000)

    def test_global_generators_are_untouched(self, backend):
        before = random.getstate(), np.random.get_state()[1].tobytes()  # noqa: NPY002
        if backend.name.startswith("torch"):
            import torch

            torch_before = torch.get_rng_state()
        draw(backend)
        assert (random.getstate(), np.random.get_state()[1].tobytes()) == before  # noqa: NPY002
        if backend.name.startswith("torch"):
            assert bool((torch.get_rng_state() == torch_before).all())

    @pytest.mark.parametrize("seed", [-1, 2**64, 1.5, True])
    def test_bad_seed(self, seed):
        with pytest.raises((ValueError, TypeError), match="seed"):
            zo.Optimizer(np.zeros((2, 2)), seed=seed)

    def test_jax_can_trace_the_step(self, make_backend):
        backend = make_backend("jax")
        import jax

        sampler = sampling.JaxSampler(3)

        def at(step):
            return sampler.normal(zo.Draw("probe", 0, step, None), (4,), dtype="float64")

        assert np.array_equal(jax.jit(at)(9), backend.numpy(at(9)))


class TestHostSampler:
    # Recorded once; raw Philox bits and exactly rounded operations keep them for ever.
    KNOWN = (
        "0x1.c7d88fd9fcb2ep-1",
        "0x1.5b7caac354193p-1",
        "0x1.c7237875564f3p-2",
        "-0x1.5aa401f4bf2adp-5",
    )

    def test_same_numbers_for_every_library(self, backend):
        expected = zo.HostSampler(5).normal(DRAW, (4, 3), dtype=np.float64)
        values = zo.HostSampler(5, backend.xp).normal(
            DRAW, (4, 3), dtype=backend.dtype("float64"), device=backend.device
        )
        assert np.array_equal(backend.numpy(values), expected)

    def test_known_numbers(self):
        values = zo.HostSampler(0).normal(zo.Draw("probe", 0, 0, None), (4,), dtype=np.float64)
        assert tuple(v.hex() for v in values.tolist()) == self.KNOWN

    def test_quantiles(self):
        special = pytest.importorskip("scipy.special", reason="SciPy has the reference")
        u = np.random.default_rng(0).random(100_000)
        u = np.concatenate([u, [2.0**-54, 1e-15, 0.075, 0.5, 0.925, 1 - 2.0**-53]])
        expected = special.ndtri(u)
        error = np.abs(inverse_normal(u) - expected)
        assert np.max(error / np.maximum(np.abs(expected), 1e-3)) < 1e-14  # measured: 1.1e-15

    def test_drives_every_library_alike(self, backend):
        """The same seed gives the same path everywhere, up to rounding."""
        target = np.outer(np.arange(6.0), np.ones(4)) / 6

        def run(b):
            optimizer = zo.Optimizer(
                b.array(np.zeros((6, 4))), method=zo.zo_mopi(rank=3), seed=zo.HostSampler(4)
            )
            for _ in range(5):
                points = [b.numpy(p) for p in optimizer.ask()]
                optimizer.tell([float(np.sum((p - target) ** 2)) for p in points])
            return b.numpy(optimizer.x)

        reference = run(type(backend)("numpy", np))
        assert np.max(np.abs(run(backend) - reference)) < 1e-9


class TestStepKey:
    def test_suits_every_generator(self):
        keys = [draws.step_key(3, t) for t in range(2000)]
        assert all(0 <= k < 2**31 for k in keys)
        assert len(set(keys)) == len(keys)
        assert keys[:3] != [draws.step_key(4, t) for t in range(3)]


class TestCudaPhilox:
    """The kernel's C code, compiled for the CPU, gives the published values of Philox 4x32-10."""

    # Random123's known answers: counter, key, result
    ANSWERS = (
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (0xFFFFFFFF,) * 4,
            (0xFFFFFFFF,) * 2,
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    )

    @pytest.fixture
    def library(self, tmp_path):
        compiler = shutil.which("g++")
        if compiler is None:
            pytest.skip("no C++ compiler")
        source = tmp_path / "philox.cpp"
        source.write_text(
            "#include <cmath>\n#define __device__\n"
            "static double cospi(double x) { return std::cos(M_PI * x); }\n"
            "static float cospif(float x) { return (float)std::cos(M_PI * (double)x); }\n"
            + sampling.CUDA_PHILOX
            + 'extern "C" void philox(unsigned* c, unsigned* k) { philox4x32(c, k[0], k[1]); }\n'
            'extern "C" void normals(double* d, float* f, unsigned n) {\n'
            "  for (unsigned i = 0; i < n; ++i) { unsigned c[4] = {i, 0, 1, 2};\n"
            "    philox4x32(c, 3, 4); d[i] = box_muller(c, 0.0); f[i] = box_muller(c, 0.0f); } }\n"
        )
        target = tmp_path / "philox.so"
        subprocess.run([compiler, "-shared", "-fPIC", "-o", target, source], check=True)
        return ctypes.CDLL(str(target))

    def test_known_answers(self, library):
        for counter, key, expected in self.ANSWERS:
            c, k = (ctypes.c_uint * 4)(*counter), (ctypes.c_uint * 2)(*key)
            library.philox(c, k)
            assert tuple(c) == expected

    def test_normals(self, library):
        n = 200_000
        double, single = np.empty(n), np.empty(n, dtype=np.float32)
        library.normals(
            double.ctypes.data_as(ctypes.c_void_p), single.ctypes.data_as(ctypes.c_void_p), n
        )
        for z in (double, single.astype(float)):
            assert np.all(np.isfinite(z))
            for power, mean, variance in ((1, 0, 1), (2, 1, 2), (4, 3, 96)):
                assert abs(np.mean(z**power) - mean) < 5 * np.sqrt(variance / n)


class TestPhilox:
    """One generator in each thread, its state set for each draw."""

    def test_is_a_fresh_one(self):
        key = zo.Draw("right", 2, 2**40 + 1, 6)
        for _ in range(2):  # the first leaves half a word behind
            bits = np.random.Philox(
                key=np.asarray([2**64 - 1, 2], dtype=np.uint64),
                counter=np.asarray([0, 2**40 + 1, 2, 7], dtype=np.uint64),
            )
            expected = np.random.Generator(bits)
            found = draws.philox(2**64 - 1, key)
            assert found.integers(9, size=3, dtype=np.uint32).tolist() == (
                expected.integers(9, size=3, dtype=np.uint32).tolist()
            )
            np.testing.assert_array_equal(found.standard_normal(7), expected.standard_normal(7))

    def test_threads_do_not_disturb_each_other(self):
        shape, keys = (50, 40), [zo.Draw("probe", 0, step, None) for step in range(24)]
        sampler = sampling.NumpySampler(1)

        def numbers(key):
            return sampler.normal(key, shape, dtype=np.float32)

        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(numbers, keys))
        for key, values in zip(keys, found, strict=True):
            np.testing.assert_array_equal(values, numbers(key))
