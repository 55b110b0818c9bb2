"""What is wrong with losses, and with the calls that make them."""

from __future__ import annotations


class NonFiniteLossError(ArithmeticError):
    """A loss was NaN or infinite and ``on_failure`` asked for it to be raised."""


def loss_not_finite(loss: float) -> NonFiniteLossError:
    """Explain that the function returned NaN or infinity, which on_failure forbids."""
    return NonFiniteLossError(f"fun returned a loss that is not finite: {loss}")


def gradient_not_finite() -> NonFiniteLossError:
    """Explain that a gradient has an entry that is not finite, which on_failure forbids."""
    return NonFiniteLossError("gradient returned a number that is not finite")


def loss_not_scalar(shape: tuple[int, ...]) -> ValueError:
    """Explain that the function returned an array instead of a number."""
    return ValueError(
        f"fun must return one real number per call, got an array of shape {shape}; "
        "reduce it (sum or mean), or pass vectorized=True if fun takes a stack of candidates"
    )


def loss_not_real(value: object, kind: str) -> TypeError:
    """Explain that the function returned something that is not a real number."""
    return TypeError(
        f"fun must return a real number, got {kind}: {value!r:.60}; convert it with float()"
    )


def losses_not_sequence(value: object, expected: int) -> TypeError:
    """Explain that something else than a sequence of losses came."""
    return TypeError(
        f"{expected} losses are needed, as a 1-d array or a list of numbers, got "
        f"{type(value).__name__} {value!r:.60}"
    )


def wrong_stack_of_losses(shape: tuple[int, ...], expected: int) -> ValueError:
    """Explain that a vectorised function returned the wrong number of losses."""
    return ValueError(
        f"with vectorized=True fun gets a stack of {expected} candidates and must return "
        f"{expected} losses (shape ({expected},)), got shape {shape}"
    )


def wrong_number_of_losses(got: int | str, expected: int) -> ValueError:
    """Explain that `tell` was handed the wrong number of losses."""
    return ValueError(
        f"tell needs one loss for each of the {expected} points of ask, in their order, got {got}"
    )


def tell_before_ask() -> RuntimeError:
    """Explain that `tell` was called without a pending `ask`."""
    return RuntimeError(
        "tell was called without a pending ask; each tell answers the ask before it"
    )


def told_in_part(missing: list[int]) -> ValueError:
    """Explain that some losses of the step are known."""
    return ValueError(
        f"some losses of this step were told by index; tell the others so, too: indices={missing}"
    )


def told_before(index: int) -> ValueError:
    """Explain that a loss was told twice."""
    return ValueError(f"the loss of point {index} was told before; each is told once")


def no_such_point(index: object, count: int) -> ValueError:
    """Explain that an index is that of no point."""
    return ValueError(f"indices holds {index!r}; the points of ask are numbered 0 to {count - 1}")


def wrong_part_of_losses(got: int | str, expected: int) -> ValueError:
    """Explain that losses and indices are not as many."""
    return ValueError(f"tell got {expected} indices and {got} losses; give one loss for each")


class EvaluationTimeoutError(TimeoutError):
    """A call of the function took longer than ``timeout``."""


def evaluation_timeout(seconds: float) -> EvaluationTimeoutError:
    """Explain that a call was given up."""
    return EvaluationTimeoutError(f"fun did not return within timeout={seconds:g} seconds")


def timeout_of_shared_memory() -> ValueError:
    """Explain that a call that hangs keeps its array."""
    return ValueError(
        "reuse_buffers=True lends one piece of memory to all points, and a call that exceeds "
        "timeout keeps it; leave one of the two out, or pass workers=1, a process that can be "
        "ended"
    )


class WorkerDiedError(RuntimeError):
    """A process that evaluated the function ended without an answer."""


def worker_died(code: int | None) -> WorkerDiedError:
    """Explain that two processes died over one point."""
    return WorkerDiedError(
        f"two workers died while they evaluated the same point, the last with exit code {code}; "
        'on_failure={"exception": "skip"} leaves such points out'
    )


def worker_not_started() -> RuntimeError:
    """Explain that a process ended before it evaluated anything."""
    return RuntimeError(
        "a worker ended with an exception, printed above, before it could evaluate a point. "
        "Processes that are not forked begin by importing the script that started them: protect "
        'what starts a run by `if __name__ == "__main__":`, and define fun in a file'
    )


def not_for_workers(what: str, cause: object) -> TypeError:
    """Explain that processes of `workers=` cannot get something."""
    return TypeError(
        f"{what} cannot be sent to the processes of workers= ({cause}); define it in a module "
        "that can be imported, or pass workers=ThreadPoolExecutor(n), or, where nothing runs in "
        'other threads, call multiprocessing.set_start_method("fork") at the beginning'
    )


def wrong_workers(value: object) -> TypeError:
    """Explain that `workers` is neither a number nor an executor."""
    return TypeError(
        f"workers must be a number of processes or an executor with a method submit, got "
        f"{type(value).__name__}"
    )


def stack_in_workers() -> ValueError:
    """Explain that the points of a step belong together."""
    return ValueError(
        "vectorized=True hands all points of a step to one call of fun, structured=True lets them "
        "share products, and workers hands them out one by one; leave one of the two out"
    )


def shared_memory_in_workers() -> ValueError:
    """Explain that an executor may read a point later."""
    return ValueError(
        "reuse_buffers=True makes all points in one piece of memory, which an executor may read "
        "when the next one is there; leave one of the two out, or pass a number of workers"
    )
