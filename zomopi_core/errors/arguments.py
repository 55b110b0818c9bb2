"""What is wrong with an argument."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def option_of_method(name: str) -> ValueError:
    """Explain that an option belongs to the method that was passed as an object."""
    return ValueError(
        f"{name} was given beside a Method, which has its own; set it where the method is made, "
        f"for example zo.zo_mopi({name}=...), or pass the method by its name"
    )


def no_such_option(name: str, method: str) -> ValueError:
    """Explain that a method has no such option."""
    return ValueError(f"{method} has no option {name}; leave it out")


def not_a_count(name: str, value: object, least: int = 1) -> ValueError:
    """Explain that a count is not an integer, or too small or large."""
    most = " and below 2**63" if isinstance(value, int) and value > least else ""
    return ValueError(f"{name} must be an integer of at least {least}{most}, got {value!r:.40}")


def not_a_number(name: str, value: object, what: str) -> ValueError:
    """Explain that a number lies outside its range; `what` says what it must be."""
    return ValueError(f"{name} must be {what}, got {value!r}")


def unknown_name(argument: str, value: object, known: Iterable[str]) -> ValueError:
    """Explain that a name is not among the known ones, with the closest one as a hint."""
    known = list(known)
    close = get_close_matches(str(value), known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return ValueError(
        f"{argument} must be one of {', '.join(map(repr, known))}, got {value!r}{hint}"
    )


def wrong_method(value: object) -> TypeError:
    """Explain that `method` is neither a Method nor a name."""
    return TypeError(
        f"method must be a name or a Method, got {type(value).__name__}; "
        "zo.methods() lists the names, zo.zo_mopi(...) makes a Method"
    )


def wrong_sampler(value: object) -> TypeError:
    """Explain that `seed` is neither an integer nor a sampler."""
    return TypeError(
        f"seed must be an integer or a sampler (an object with a method normal(draw, shape, *, "
        f"dtype, device)), got {type(value).__name__}; of a NumPy generator rng pass "
        "int(rng.integers(2**63))"
    )


def bad_rate(name: str, value: object, step: int) -> ValueError:
    """Explain that a schedule returned something else than a learning rate."""
    return ValueError(
        f"{name} returned {value!r:.60} at step {step}; a schedule must return a number of at "
        "least 0"
    )


def not_a_name(value: object) -> TypeError:
    """Explain that a key of the dict of parameters is not a string."""
    return TypeError(
        f"the keys of x0 must be strings, got {value!r}; flatten nested containers to names such "
        "as 'layer/weight'"
    )


def no_stopping_rule() -> ValueError:
    """Explain that nothing would end the run."""
    return ValueError(
        "nothing would stop this run: give max_queries (evaluations of fun), max_steps or max_time"
    )


def budget_below_step(max_queries: int, per_step: int) -> ValueError:
    """Explain that the budget does not pay for one step."""
    return ValueError(
        f"max_queries={max_queries} does not pay for one step, which takes {per_step} "
        f"evaluations; raise it to at least {per_step}, or lower probes"
    )


def needs_gradient(method: str) -> TypeError:
    """Explain that a first-order method was used without a gradient."""
    return TypeError(
        f"{method} is a first-order method and has no probes; pass minimize(gradient=...), a "
        "callable that returns dF/dX, or call method.descend or Optimizer.descend"
    )


def takes_no_gradient(method: str) -> TypeError:
    """Explain that a gradient was given to a method that does not use one."""
    return TypeError(
        f"{method} estimates the gradient from losses and takes none; leave gradient out, or "
        "choose a first-order method such as muon or mopi"
    )


def needs_key(method: str) -> TypeError:
    """Explain that a method which tells batches from all data got a loss that does not."""
    return TypeError(
        f"{method} needs the loss of one batch at some steps and of all data at others, and fun "
        "has no parameter `key` by which to tell them apart; write fun(x, *, key), which draws "
        "its batch from the integer key and takes all data where key is None, or choose a method "
        "that does not ask for all data, such as mezo"
    )


def needs_snapshot() -> ValueError:
    """Explain that points around a snapshot were wanted, and there is none."""
    return ValueError(
        "this step compares with a snapshot; take a step of method.snapshots.method "
        "first, and pass the parameters before that step as perturb(..., snapshot=...)"
    )


def needs_learning_rate(name: str) -> ValueError:
    """Explain that a method whose steps scale with F has no default learning rate."""
    return ValueError(
        f"{name} must be given: the steps of this method have no size of their own by which a "
        "default could be chosen; start from one over the curvature of F"
    )


def missing_extra(package: str, extra: str) -> ImportError:
    """Explain which extra brings a missing package."""
    return ImportError(f"{package} is not installed; pip install 'zomopi[{extra}]' brings it")


def device_not_found(library: str, device: str, cause: str) -> ValueError:
    """Explain that a device cannot be used."""
    return ValueError(
        f"device {device!r} cannot be used with {library}: {cause}; "
        "zomopi info lists the devices found"
    )


def two_conventions() -> ValueError:
    """`vectorized` and `structured` exclude each other."""
    return ValueError(
        "vectorized and structured cannot both be True: a stack of candidates has no structure; "
        "choose one"
    )


def cannot_report_later(name: str, report_every: int) -> ValueError:
    """Explain that something needs the losses of each step at once."""
    return ValueError(
        f"{name} needs the losses of each step at once, and report_every={report_every} fetches "
        "those of several together; leave out one of the two"
    )
