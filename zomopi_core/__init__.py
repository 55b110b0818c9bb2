"""Minimise a black-box function of matrices by calling it, never differentiating it."""

from .catalog import methods, zo_mopi, zo_mopi_released, zo_muon
from .draws import Draw
from .errors import (
    EvaluationTimeoutError,
    JournalError,
    JournalWarning,
    NonFiniteLossError,
    PrecisionWarning,
    WorkerDiedError,
)
from .failures import Retry
from .first_order import adago, aro, dion, low_rank_msgd, low_rank_muon, mopi, muon
from .journal import Journal
from .linear_methods import hizoo, mezo, mezo_adam, mezo_momentum, mezo_svrg, zo_sgd
from .low_rank_methods import lozo, lozo_m, subzero
from .method import Method
from .minimize import minimize
from .newton_schulz import newton_schulz
from .objective import apply_step, perturb
from .optimizer import Optimizer
from .orthogonalize import polar
from .power_iteration import streaming_power_iteration
from .race import race
from .race_result import RaceResult
from .result import Iteration, Result
from .resume import replay, resume
from .sampling import HostSampler, Sampler
from .structured import PerturbedMatrix
from .update import constant, cosine_decay, linear_decay

__all__ = [
    "Draw",
    "EvaluationTimeoutError",
    "HostSampler",
    "Iteration",
    "Journal",
    "JournalError",
    "JournalWarning",
    "Method",
    "NonFiniteLossError",
    "Optimizer",
    "PerturbedMatrix",
    "PrecisionWarning",
    "RaceResult",
    "Result",
    "Retry",
    "Sampler",
    "WorkerDiedError",
    "adago",
    "apply_step",
    "aro",
    "constant",
    "cosine_decay",
    "dion",
    "hizoo",
    "linear_decay",
    "low_rank_msgd",
    "low_rank_muon",
    "lozo",
    "lozo_m",
    "methods",
    "mezo",
    "mezo_adam",
    "mezo_momentum",
    "mezo_svrg",
    "minimize",
    "mopi",
    "muon",
    "newton_schulz",
    "perturb",
    "polar",
    "race",
    "replay",
    "resume",
    "streaming_power_iteration",
    "subzero",
    "zo_mopi",
    "zo_mopi_released",
    "zo_muon",
    "zo_sgd",
]
