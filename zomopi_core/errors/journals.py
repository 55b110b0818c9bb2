"""What is wrong with a journal."""

from __future__ import annotations

from pathlib import Path


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


def no_file_name(path: object, name: str = "journal") -> ValueError:
    """Explain that a path names no file."""
    return ValueError(f"{name} must be the path of a file, got {path!r}; add the file's name")


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


def journal_gone(path: object) -> str:
    """Warn that a run wrote into a file that nobody can open any more."""
    return (
        f"{path} was removed or replaced while the run wrote it: what it recorded is lost, its "
        "result is not"
    )


def journal_not_writable(path: object, cause: object) -> JournalError:
    """Explain that a run cannot go on in a file that may not be written."""
    return JournalError(
        f"{path} cannot be written: {cause}; make it writable to go on with its run. zo.replay "
        "only reads"
    )


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
