"""Functions that other processes can import."""

import os
import signal
import time

import numpy as np

TARGET = np.outer(np.arange(6.0), np.ones(4)) / 6


def loss(x):
    return float(np.mean((x - TARGET) ** 2))


def keyed(x, key):
    return loss(x) + 1e-3 * (key % 11)


class Jump:
    """Rises for good at some step, which it knows by the keys of those after."""

    def __init__(self, keys):
        self.keys = frozenset(keys)

    def __call__(self, x, key=None):
        return loss(x) + 50.0 * (key in self.keys)


def steep(x):
    return float(np.sum(np.abs(x - 0.01) ** 3))


def large(x):
    return float(np.mean((x - 1) ** 2))


def of_torch(x):
    import torch

    return torch.mean((x - torch.asarray(TARGET, dtype=x.dtype)) ** 2)


class Faulty:
    """Misbehaves at some calls of all processes together, counted by a file's length."""

    def __init__(self, file, at, act):
        self.file, self.at, self.act = file, at, act

    def __call__(self, x):
        # Unbuffered, as the length after one's own byte is no other call's, whoever writes beside.
        with open(self.file, "ab", buffering=0) as file:
            file.write(b".")
            number = file.tell()
        if self.at == "always" or number in self.at:
            self.act()
        return loss(x)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def hang():
    time.sleep(60)


def pause():
    time.sleep(0.025)


def mine(x):
    raise KeyError("mine")


class OddError(Exception):
    """One that cannot be sent."""

    def __init__(self, a, b):
        super().__init__("odd")


def odd(x):
    raise OddError(1, 2)
