"""Messages for bad input: the cause first, then the remedy.

The texts stand in one place so that they read alike and can be tested; the code that notices the
fault calls the function and raises what it returns.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path


def option_of_method(name: str) -> ValueError:
    """Explain that an option belongs to the method that was passed as an object."""
    return ValueError(
        f"{name} was given beside a Method, which has its own; set it where the method is made, "
        f"for example zo.zo_mopi({name}=...), or pass the method by its name"
    )


def no_such_option(name: str, method: str) -> ValueError:
    """Explain that a method has no such option."""
    return ValueError(f"{method} has no option {name}; leave it out")


class PrecisionWarning(UserWarning):
    """A probe is too small to be seen in the floating-point format of the parameters."""


class NonFiniteLossError(ArithmeticError):
    """A loss was NaN or infinite and ``on_failure`` asked for it to be raised."""


def wrong_parameters(value: object) -> TypeError:
    """Explain that `x0` is neither an array nor a dict of arrays."""
    return TypeError(
        f"x0 must be an array or a dict of arrays, got {type(value).__name__}; pass a list or a "
        "number as numpy.asarray(x0, dtype=float), other containers as a dict name -> array"
    )


def no_parameters() -> ValueError:
    """Explain that `x0` is a dict without entries."""
    return ValueError("x0 is an empty dict: there is nothing to optimise; pass at least one array")


def integer_parameters(name: str, dtype: object) -> TypeError:
    """Explain that a parameter has no floating-point dtype."""
    return TypeError(
        f"{name} has dtype {dtype}, which cannot hold a small real step; "
        "convert it to a floating-point dtype, for example float64"
    )


def complex_parameters(name: str, dtype: object) -> TypeError:
    """Explain that a parameter is complex."""
    return TypeError(
        f"{name} has the complex dtype {dtype}, whose real and imaginary parts are separate "
        "unknowns; pass a real view, for example numpy.stack([x.real, x.imag]), and put the "
        "complex array together inside fun"
    )


def empty_parameters(name: str, shape: tuple[int, ...]) -> ValueError:
    """Explain that a parameter has no entries."""
    return ValueError(f"{name} has shape {shape} and so no entries; leave it out of x0")


def nonfinite_parameters(name: str) -> ValueError:
    """Explain that a parameter holds NaN or infinity."""
    return ValueError(f"{name} holds NaN or infinity; start from finite numbers")


def mixed_libraries(names: Iterable[str]) -> TypeError:
    """Explain that the parameters come from several array libraries."""
    return TypeError(
        f"x0 mixes arrays of {', '.join(sorted(names))}; convert them all to one library"
    )


def mixed_devices(devices: Iterable[str]) -> ValueError:
    """Explain that the parameters live on several devices."""
    return ValueError(
        f"x0 mixes the devices {', '.join(sorted(devices))}; move all arrays to one device"
    )


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


def special_array(name: str, value: object) -> TypeError:
    """Explain that an array subclass would lose its meaning."""
    return TypeError(
        f"{name} is a {type(value).__name__}, whose mask or operators would be lost; pass "
        "numpy.asarray(x0) and restore them inside fun"
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


def wrong_bounds(detail: str) -> ValueError:
    """Explain what is wrong with `bounds`."""
    return ValueError(
        f"bounds must be a pair (low, high) of numbers, arrays of the shape of x0, or dicts of "
        f"them, with low <= high: {detail}"
    )


def wrong_projection(name: str, detail: str) -> ValueError:
    """Explain that `project` returned something else than a point like x."""
    return ValueError(
        f"project must return the parameters with the shapes and dtypes it was given: "
        f"{name} {detail}"
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


def wrong_gradient(name: str, detail: str) -> ValueError:
    """Explain that a gradient does not fit the parameters."""
    return ValueError(
        f"gradient must return arrays of the library and shapes of the parameters: {name} {detail}"
    )


def needs_learning_rate(name: str) -> ValueError:
    """Explain that a method whose steps scale with F has no default learning rate."""
    return ValueError(
        f"{name} must be given: the steps of this method have no size of their own by which a "
        "default could be chosen; start from one over the curvature of F"
    )


def cannot_race(name: str) -> ValueError:
    """Explain that a first-order method has no place in a race."""
    return ValueError(
        f"{name} takes gradients, and in a race everybody gets loss values alone; leave it out of "
        "methods, or choose one that evaluates the function only, such as zo_muon"
    )


def wrong_competitor(value: object) -> TypeError:
    """Explain that an entry of `methods` is nothing that can race."""
    return TypeError(
        f"methods holds {value!r:.60} of type {type(value).__name__}; pass names, Methods, or "
        "solvers: callables solver(fun, x0, max_queries, seed)"
    )


def wrong_option(text: str, part: str) -> ValueError:
    """Explain that an option behind a method's name cannot be read."""
    return ValueError(
        f"in {text!r}, {part!r} is no option; write name:option=value, several options as "
        "name:option=value:option=value, and several values to try as option=0.01/0.1"
    )


def no_options(name: str, part: str) -> ValueError:
    """Explain that outsiders have no options."""
    return ValueError(
        f"{name} takes no options, got {part!r}; to race it with other settings, pass a solver of "
        "your own, a callable solver(fun, x0, max_queries, seed)"
    )


def schedule_without_rate(name: str, schedule: str) -> ValueError:
    """Explain that there is nothing that a schedule could lower."""
    return ValueError(
        f"schedule={schedule} needs a learning rate to start from: write "
        f"{name}:learning_rate=0.01:schedule={schedule}"
    )


def same_label(argument: str, label: str) -> ValueError:
    """Explain that two entries could not be told apart."""
    return ValueError(
        f"{argument} has two entries named {label!r}; pass a dict from a name of your own to each"
    )


def wrong_problem(value: object) -> TypeError:
    """Explain that an entry of `problems` is no problem."""
    return TypeError(
        f"problems holds {value!r:.60} of type {type(value).__name__}; pass names, problems "
        "(objects with name, x0 and fun), or callables problem(seed) that return one"
    )


def other_race(file: object, what: str, stored: object, wanted: object) -> ValueError:
    """Explain that a file holds the results of another race."""
    return ValueError(
        f"{file} holds a race with another {what} ({stored} there, {wanted} now); it is left as "
        "it is: choose another file, or repeat what it was made with"
    )


def not_a_race(file: object, detail: str) -> ValueError:
    """Explain that a file cannot be read as the results of a race."""
    return ValueError(
        f"{file} is not a file of race results: {detail}; choose another name for the results"
    )


def cannot_send(what: str, cause: object) -> TypeError:
    """Explain that other processes cannot get a problem or a solver."""
    return TypeError(
        f"workers above 1 are processes of their own, and {what} cannot be sent to them "
        f"({cause}); use workers=1, names, or functions of a module that can be imported"
    )


def wrong_basis(detail: str) -> ValueError:
    """Explain that `basis` gave no frame."""
    return ValueError(
        f"basis {detail}; it takes the number of a leaf and the step, and returns directions as "
        "columns, as many as the rows that the frame sees"
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


def invisible_probe(name: str, dtype: object, fraction: float) -> str:
    """Say that most entries of a probe vanish by rounding, and what to do."""
    return (
        f"{fraction:.0%} of the entries of {name} ({dtype}) do not change when the probe is "
        "added: smoothing is below their floating-point spacing, so differences of the loss are "
        "mostly rounding; raise smoothing, scale the parameters towards 1, or use a wider dtype"
    )


class JournalError(ValueError):
    """A journal cannot be used: it exists, is locked, damaged, newer, or of another run."""


def journal_exists(path: object) -> JournalError:
    """Explain that a journal is there already."""
    return JournalError(
        f"{path} exists and is not overwritten; go on with its run by zo.resume or "
        "Optimizer.resume, or choose another name"
    )


def journal_locked(path: object) -> JournalError:
    """Explain that another run writes the journal."""
    return JournalError(
        f"{path} is being written by a run that is alive; stop that run, or wait for its end"
    )


def not_a_journal(path: object, detail: str) -> JournalError:
    """Explain that a file is no journal, or one whose structure is broken."""
    return JournalError(f"{path} cannot be read as a journal: {detail}; it is left as it is")


def damaged_journal(path: object, part: str) -> JournalError:
    """Explain that a checksum does not fit."""
    return JournalError(
        f"{path} is damaged: {part} is not what was written; it is left as it is. Go on from a "
        "copy of the file, or start the run again under another name"
    )


def newer_journal(path: object, version: int, known: int) -> JournalError:
    """Explain that a journal was written by a newer release."""
    return JournalError(
        f"{path} has format {version}, and this release of zomopi knows formats up to {known}; "
        "update zomopi"
    )


class JournalWarning(UserWarning):
    """A journal or a snapshot could not be written; the run goes on without."""


def wrong_journal(value: object) -> TypeError:
    """Explain that `journal` is no path."""
    return TypeError(
        f"journal must be a path or a zo.Journal, got {type(value).__name__}; for example "
        'journal="run.zomopi"'
    )


def other_run(detail: str) -> JournalError:
    """Explain that what is recorded is not what this run asks for."""
    return JournalError(
        f"the journal does not fit this run: {detail}; it was written for another problem, or by "
        "a program that computes otherwise"
    )


def no_file_name(path: object) -> ValueError:
    """Explain that a path names no file."""
    return ValueError(f"journal must be the path of a file, got {path!r}; add the file's name")


def no_folder(path: Path) -> JournalError:
    """Explain that the folder of a new journal does not exist."""
    return JournalError(f"{path} cannot be made: there is no folder {path.parent}; make it first")


def journal_not_made(path: object, cause: object) -> JournalError:
    """Explain that a new journal cannot be written."""
    return JournalError(f"{path} cannot be written: {cause}; nothing was evaluated")


def journal_not_locked(path: object, cause: object) -> JournalError:
    """Explain that the file that stands for a journal's lock cannot be made."""
    return JournalError(
        f"{path} cannot be written: its lock cannot be made ({cause}); zo.replay needs none"
    )


def journal_failed(path: object, cause: object) -> JournalError:
    """Explain that a journal cannot be written, where that ends the run."""
    return JournalError(f"{path} cannot be written: {cause}; what is in it can be resumed")


def journal_lost(path: object, cause: object) -> str:
    """Say that the run goes on without its journal."""
    return (
        f"{path} cannot be written: {cause}; the run goes on without it, and can be resumed from "
        'the step before. zo.Journal(..., on_error="raise") would have ended it'
    )


def no_snapshots(part: object) -> str:
    """Say that a method's state has no place in a file."""
    return (
        f"no snapshots are written: the state of this method holds {part}, which has no form in a "
        "file; resume computes all steps again from their losses"
    )


def journal_of_gradients() -> TypeError:
    """Explain that a first-order run has no journal."""
    return TypeError(
        "journal records losses, from which a run can be repeated; a first-order method also "
        "takes gradients, as large as the parameters. Leave journal out, or choose a method that "
        "evaluates the function only"
    )


def needs_again(name: str, why: str) -> JournalError:
    """Explain that an argument could not be recorded."""
    return JournalError(
        f"pass {name}= as it was when the run began: {why}, which no file can hold"
    )


def given_twice(name: str) -> JournalError:
    """Explain that an argument is recorded."""
    return JournalError(f"{name} is recorded in the journal; leave it out")


def other_draws(detail: str) -> JournalError:
    """Explain that the random numbers would be others here."""
    return JournalError(
        f"this run cannot be repeated here, its random numbers would be others: {detail}. Go on "
        "where it was recorded; a run with seed=zo.HostSampler(seed) has the same numbers "
        "everywhere"
    )


def other_rounding(detail: str) -> JournalError:
    """Explain that the same numbers would be rounded otherwise here."""
    return JournalError(
        f"this run would not have the same bits here: {detail}. Go on where it was recorded, or "
        "pass exact=False for a result that differs by rounding"
    )


def rounds_otherwise(detail: str) -> str:
    """Say that a run differs by rounding from the one that was recorded."""
    return f"the steps taken here differ by rounding from those that were recorded: {detail}"


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


def other_driver(driver: str) -> JournalError:
    """Explain that a journal is resumed in another way."""
    how = {"minimize": "zo.resume(path, fun)", "optimizer": "zo.Optimizer.resume(path)"}
    return JournalError(
        f"the journal was written by {driver}; go on with its run by "
        f"{how.get(driver, 'what wrote it')}"
    )


def needs_start(path: object, cause: object) -> JournalError:
    """Explain that the start of a run is needed."""
    return JournalError(
        f"{path}, the start of the run, cannot be read: {cause}; pass x0= as it was when the run "
        "began"
    )


def two_conventions() -> ValueError:
    """`vectorized` and `structured` exclude each other."""
    return ValueError(
        "vectorized and structured cannot both be True: a stack of candidates has no structure; "
        "choose one"
    )


def not_dense() -> TypeError:
    """Say that a structured function used its argument like an array."""
    return TypeError(
        "fun gets a PerturbedMatrix because of structured=True; it supports P @ W, W @ P, P.T and "
        "rows; P.dense() makes an array of it"
    )


def not_rows(index: object) -> TypeError:
    """Something else than rows was taken of a perturbed matrix."""
    return TypeError(
        f"a PerturbedMatrix has rows only, by a slice, an integer or an integer array, got "
        f"{index!r:.60}; use P.T for columns or P.dense()"
    )


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
