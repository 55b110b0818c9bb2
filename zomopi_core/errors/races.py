"""What is wrong with a race."""

from __future__ import annotations


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
