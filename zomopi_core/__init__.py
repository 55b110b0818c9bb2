"""Minimise a black-box function of matrices by calling it, never differentiating it."""

from .catalog import methods, zo_mopi
from .errors import NonFiniteLossError, PrecisionWarning
from .method import Method
from .minimize import Iteration, Result, minimize
from .objective import apply_step, perturb
from .optimizer import Optimizer
from .orthogonalize import newton_schulz, polar, streaming_power_iteration
from .sampling import Draw, HostSampler, Sampler
from .update import constant, cosine_decay, linear_decay

__all__ = [
    "Draw",
    "HostSampler",
    "Iteration",
    "Method",
    "NonFiniteLossError",
    "Optimizer",
    "PrecisionWarning",
    "Result",
    "Sampler",
    "apply_step",
    "constant",
    "cosine_decay",
    "linear_decay",
    "methods",
    "minimize",
    "newton_schulz",
    "perturb",
    "polar",
    "streaming_power_iteration",
    "zo_mopi",
]
