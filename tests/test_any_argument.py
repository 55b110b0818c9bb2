"""Any value for any public argument: a result, or the error that is documented."""

import inspect
import math
import time
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import zomopi_core as zo

X0 = np.ones((3, 4))
DOCUMENTED = (TypeError, ValueError, zo.JournalError)

# Each argument gets one of these: wrong types, signs and sizes among values that are right.
WRONG = (
    None, True, 0, -1, 2.5, 10**400, math.nan, math.inf, -0.0, 5e-324, 1e308, "", "skip", b"x", 1j,
    (), [], {}, [1, "a"], {"a": X0}, X0, np.ones(0), np.float32(2.0), np.int64(3), object(), len,
)  # fmt: skip
FINE = {
    "method": ("mezo", "zo-muon", zo.zo_mopi(learning_rate=0.1)),
    "learning_rate": ("auto", 0.1, zo.constant(0.1)),
    "smoothing": ("auto", 1e-3, 1e300),
    "spectral_rank": ("auto", 2, 10**6),
    "max_queries": (20, 40),
    "max_steps": (3,),
    "max_time": (10.0,),
    "target": (1.0, -1e300),
    "stagnation": (2,),
    "seed": (1, 2**70, zo.HostSampler(1)),
    "bounds": ((0.0, None), (X0, X0), (-math.inf, math.inf)),
    "project": (lambda x: np.clip(x, 0, 2),),
    "on_failure": ("retry", {"exception": "skip"}, zo.Retry(1, 0.0)),
    "timeout": (5.0,),
    "failure_limit": (5,),
    "callback": (lambda iteration: False,),
}
CALLED = {"callback", "project", "learning_rate", "vector_learning_rate"}
FLAGS = ("vectorized", "structured", "reuse_buffers", "guard", "progress")


def wrong_for(name):
    # `len` is a function like another: what it raises or returns is its own affair
    return [value for value in WRONG if value is not len or name not in CALLED]


def arguments(*names):
    """One or two arguments of these names, each right or wrong."""
    one = st.sampled_from(names).flatmap(
        lambda name: st.tuples(
            st.just(name), st.sampled_from([*wrong_for(name), *FINE.get(name, ())])
        )
    )
    return st.lists(one, min_size=1, max_size=2).map(dict)


def attempt(call):
    """Return what a call returns, None if it raises what is documented."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return call()
        except DOCUMENTED as error:
            message = str(error)
    assert message
    return None


def fun(x):
    return float(np.sum(np.square(x)))


anything = settings(
    max_examples=250,
    derandomize=True,
    database=None,
    deadline=2000,  # nothing hangs
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@anything
@given(options=arguments(*FINE, *FLAGS, "gradient", "workers", "journal"))
def test_minimize(options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = attempt(lambda: zo.minimize(fun, X0, **{"max_queries": 40} | options))
    if result is not None:
        assert np.all(np.isfinite(result.x))
        assert result.nfev <= (options.get("max_queries") or math.inf)
    for file in tmp_path.iterdir():
        file.unlink()


@anything
@given(value=st.sampled_from(WRONG), function=st.sampled_from((*WRONG, fun)))
def test_function_and_start(value, function):
    attempt(lambda: zo.minimize(function, value, max_queries=20))


@anything
@given(
    options=arguments("method", "seed", "bounds", "project", "reuse_buffers"),
    losses=st.sampled_from([*WRONG, [1.0] * 8]),
    indices=st.sampled_from([*WRONG, range(8), [0, 0], [-1]]),
)
def test_optimizer(options, losses, indices):
    def call():
        optimizer = zo.Optimizer(X0, **options)
        count = len(optimizer.ask())
        attempt(lambda: optimizer.tell(losses, indices))
        attempt(lambda: optimizer.tell(losses))
        if len(optimizer.missing) == count:
            optimizer.tell([1.0 + i for i in range(len(optimizer.ask()))])
        return optimizer.x

    x = attempt(call)
    assert x is None or np.all(np.isfinite(x))


@pytest.fixture(scope="module")
def journal(tmp_path_factory):
    path = tmp_path_factory.mktemp("any") / "run.zomopi"
    zo.minimize(fun, X0, max_queries=60, journal=path)
    return path


@anything
@given(options=arguments("x0", "step", "method", "seed", "bounds", "project", "exact"))
def test_replay_and_resume(journal, options):
    x = attempt(lambda: zo.replay(journal, **options))
    assert x is None or np.all(np.isfinite(x))
    options = {name: value for name, value in options.items() if name != "step"}
    result = attempt(lambda: zo.resume(journal, fun, **options))
    assert result is None or result.nfev <= 60


# What is a record, a protocol or an exception checks nothing: it holds what others return or need.
RECORDS = {
    "Draw", "EvaluationTimeoutError", "Iteration", "JournalError", "JournalWarning", "Method",
    "NonFiniteLossError", "PerturbedMatrix", "PrecisionWarning", "RaceResult", "Result", "Sampler",
    "WorkerDiedError",
}  # fmt: skip
WITH_HYPOTHESIS = {"Optimizer", "minimize", "replay", "resume"}
STATE = zo.zo_mopi(learning_rate=0.1, rank=2).init(X0)
PROBES = zo.zo_mopi(learning_rate=0.1, rank=2).propose(STATE)
NEEDED = {
    "HostSampler": {"seed": 0},
    "Journal": {"path": "run.zomopi"},
    "apply_step": {"params": X0, "step": ()},
    "constant": {"rate": 0.1},
    "cosine_decay": {"peak": 0.1, "steps": 10},
    "linear_decay": {"peak": 0.1, "steps": 10},
    "newton_schulz": {"M": X0},
    "perturb": {"method": zo.zo_mopi(rank=2), "params": X0, "probes": PROBES},
    "polar": {"M": X0},
    "race": {"problems": "quadratic", "methods": "mezo", "budget": 20, "seeds": 1},
    "streaming_power_iteration": {"M": X0, "V": X0.T[:, :2]},
}
# Parts of the core's own making, which it takes as they are.
OWN = {("HostSampler", "xp"), ("apply_step", "step"), ("perturb", "probes")}


def called(function, values):
    """Call a function with arguments by name, also those that have none."""
    arguments = inspect.signature(function).bind_partial()
    arguments.arguments.update(values)
    return function(*arguments.args, **arguments.kwargs)


@pytest.mark.parametrize("name", sorted(set(zo.__all__) - RECORDS - WITH_HYPOTHESIS))
def test_public_names(name, tmp_path, monkeypatch):
    """Every wrong value of every argument of every public name, one at a time."""
    monkeypatch.chdir(tmp_path)
    function = getattr(zo, name)
    needed = NEEDED.get(name, {})
    attempt(lambda: called(function, needed))
    for argument in inspect.signature(function).parameters:
        if (name, argument) in OWN:
            continue
        for value in wrong_for(argument):
            if (name, argument) == ("race", "workers") and type(value) is np.int64:
                continue  # processes take their time
            began = time.perf_counter()
            attempt(lambda: called(function, needed | {argument: value}))  # noqa: B023
            assert time.perf_counter() - began < 20, f"{argument}={value!r}"


def test_scipy():
    """The same of the method that SciPy calls, whose options go on to `zo_mopi`."""
    scipy = pytest.importorskip("zomopi_adapters.scipy")
    needed = {"fun": fun, "x0": X0.ravel(), "max_queries": 20}
    names = {
        **inspect.signature(scipy.zo_mopi).parameters,
        **inspect.signature(zo.zo_mopi).parameters,
    }
    for argument in set(names) - {"method_options"}:
        for value in wrong_for(argument):
            attempt(lambda: scipy.zo_mopi(**needed | {argument: value}))  # noqa: B023


def test_other_solvers():
    """Names of the solvers that races know beside the methods."""
    outsiders = pytest.importorskip("zomopi_adapters.outsiders")
    for value in WRONG:
        assert attempt(lambda: outsiders.find(value)) is None  # noqa: B023
