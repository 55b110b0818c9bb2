"""Messages for bad input of the Torch optimizer: the cause first, then the remedy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from zomopi_core.errors import JournalError


def wrong_loss(value: object) -> Exception:
    """Explain that a closure returned something else than a number."""
    shape = getattr(value, "shape", None)
    if shape is None:
        return TypeError(
            f"the closure must return the loss as one real number, got {type(value).__name__}; "
            "return loss, not loss.backward() or the model's whole output"
        )
    return ValueError(
        f"the closure must return one number, got a tensor of shape {tuple(shape)} and dtype "
        f"{value.dtype}; reduce it with mean(), or, with batched=True, with "  # type: ignore[attr-defined]
        "zomopi_adapters.torch.per_probe"
    )


def wrong_slices(value: object, slices: int) -> ValueError:
    """Explain that a closure did not return one loss for each probe."""
    shape = tuple(getattr(value, "shape", ()))
    return ValueError(
        f"with batched=True the closure is asked for {slices} losses at once, got shape {shape}; "
        "repeat the inputs with zomopi_adapters.torch.tiled and reduce the losses with per_probe"
    )


def uneven_rows(rows: int, slices: int) -> ValueError:
    """Explain that losses cannot be divided among the probes."""
    return ValueError(
        f"per_probe got {rows} losses for {slices} probes; they must be those of inputs repeated "
        "with zomopi_adapters.torch.tiled, one for each row (reduction='none')"
    )


def no_closure() -> TypeError:
    """Explain that a step needs the loss as a function."""
    return TypeError(
        "step needs a closure that returns the loss, for example optimizer.step(lambda: "
        "model(**batch).loss); it is called several times, without gradients"
    )


def unknown_option(option: str, where: str, known: Iterable[str]) -> TypeError:
    """Explain that an option means nothing."""
    return TypeError(f"{where} takes no {option!r}; it takes {', '.join(sorted(known))}")


def option_beside_method(options: Iterable[str], name: str) -> TypeError:
    """Explain that the options of a method are part of it."""
    return TypeError(
        f"{', '.join(sorted(options))} beside a Method object would have no effect; make the "
        f"method with them, as in zo.{name}(...)"
    )


def first_order(name: str) -> TypeError:
    """Explain that a method needs gradients."""
    return TypeError(
        f"{name} is a first-order method and needs gradients, which forward passes do not give; "
        "choose a zeroth-order one such as zo_mopi"
    )


def needs_snapshots(name: str) -> ValueError:
    """Explain that a method compares with an earlier iterate, which would be a second model."""
    return ValueError(
        f"{name} evaluates the model at an earlier iterate too, and no second copy of the weights "
        "is kept here; choose a method without snapshots such as zo_mopi"
    )


def tuned_full_space(name: str) -> ValueError:
    """Explain that line searches need the last step, which here is as large as the weight."""
    return ValueError(
        f"lr='auto' searches along the last step, and that of {name} is as large as the weight, "
        "as its method has no low-rank probes; pass a number, or choose a method such as zo_mopi"
    )


def tuned_without_frames(name: str) -> ValueError:
    """Explain that line searches need a frame that outlives a step."""
    return ValueError(
        f"lr='auto' searches along the last step in the frame it was taken in, and {name} has a "
        "new one at each step; pass refresh_every of 2 or more, or lr as a number"
    )


def needs_frames(name: str) -> ValueError:
    """Explain that a method has no frames that activations could span."""
    return ValueError(
        f"sketch='activation' needs a method with frames, such as zo_mopi; {name} has none"
    )


def different_estimators() -> ValueError:
    """Explain that groups disagree on how the loss is probed."""
    return ValueError(
        "probes, smoothing and difference must be the same in all groups: their parameters are "
        "perturbed together; give them once, as options of the optimizer"
    )


def nothing_to_train() -> ValueError:
    """Explain that no parameter is left."""
    return ValueError(
        "no parameter to train: all are frozen (requires_grad=False or frozen=True), or the list "
        "is empty"
    )


def needs_model(binding: str) -> ValueError:
    """Explain that a binding needs to know the modules."""
    return ValueError(
        f"{binding} needs the model, not its parameters alone: pass the model as the first "
        "argument, or model=model beside the groups"
    )


def batched_needs_overlay(names: Iterable[str]) -> ValueError:
    """Explain that probes in one forward pass cannot share perturbed weights."""
    names = list(names)
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return ValueError(
        f"batched=True needs binding='overlay' for all parameters; in place are {shown}"
    )


def not_floating(name: str, dtype: object) -> TypeError:
    """Explain that a parameter cannot hold a step."""
    return TypeError(
        f"{name} has dtype {dtype}, which cannot hold a small real step; freeze it, or keep it in "
        "a quantised linear layer, which binding='overlay' trains beside the weight"
    )


def wrapper(name: str, kind: str) -> TypeError:
    """Explain that nothing can be added to a tensor that stands for others."""
    return TypeError(
        f"{name} is a {kind}, which stands for other tensors and cannot take up a step; freeze it "
        "(requires_grad_(False)), or, if it is the quantised weight of a linear layer, pass the "
        "model: default_groups has its update beside the weight"
    )


def without_values(name: str) -> ValueError:
    """Explain that a parameter has no memory of its own to be moved in."""
    return ValueError(
        f"{name} is on the device 'meta' and has no values: its model was made without them, or "
        "they are brought from the host or a disk for each call; load the model with a device_map "
        "that offloads nothing, or freeze what is offloaded"
    )


def quantised_full_space(name: str, method: str) -> ValueError:
    """Explain that a method has no low-rank update to lay beside a quantised weight."""
    return ValueError(
        f"{name} is quantised, and the steps of {method} are as large as the weight; choose a "
        "method with low-rank probes such as zo_mopi for its group, or freeze it"
    )


def wrong_checkpoint(detail: str) -> ValueError:
    """Explain that a state does not belong to the optimizer."""
    return ValueError(
        f"the state does not fit this optimizer: {detail}; make the optimizer with the groups and "
        "options that it was saved with"
    )


def changed_parameter(name: str, was: tuple[Any, ...], now: tuple[Any, ...]) -> ValueError:
    """Explain that a parameter is not what the optimizer was made for."""
    before, after = (
        f"{dtype} of shape {tuple(shape)} on {device}" for dtype, shape, device in (was, now)
    )
    return ValueError(
        f"{name} was {before} when the optimizer was made, and is {after} now; convert and move "
        "a model first, then make its optimizer"
    )


def wrong_model(value: object) -> TypeError:
    """Explain that `model` is no module."""
    return TypeError(f"model must be a torch.nn.Module, got {type(value).__name__}")


def rate_of_group(number: int, value: object) -> ValueError:
    """Explain that a group has got a learning rate with which no step can be taken."""
    return ValueError(
        f"param_groups[{number}]['lr'] must be a finite number from 0 on, got {value!r:.60}; look "
        "at the scheduler, or at who sets it"
    )


def within_a_step(what: str) -> RuntimeError:
    """Explain that a closure only computes a loss."""
    return RuntimeError(
        f"{what} was called by the closure of a step, while the weights stand at a probe; a "
        "closure computes the loss and nothing else: call it after the step"
    )


def group_beside_journal() -> ValueError:
    """Explain that a journal is that of a fixed set of parameters."""
    return ValueError(
        "a group cannot be added while the run is recorded, since its journal begins with all "
        "parameters; add it before, or close() the journal first"
    )


def wrong_rate(name: str, value: object) -> ValueError:
    """Explain that a learning rate is neither a number nor "auto"."""
    return ValueError(f"{name} must be a positive number or 'auto', got {value!r:.60}")


def same_name(name: str) -> ValueError:
    """Explain that names must tell parameters apart."""
    return ValueError(f"two parameters are named {name!r}; give each a name of its own")


def wrong_journal(detail: str) -> JournalError:
    """Explain that a journal is that of another optimizer."""
    return JournalError(
        f"the journal does not belong to this optimizer: {detail}; make it with the same options "
        "for the same model"
    )


def journal_needs_model() -> ValueError:
    """Explain that statistics are recorded under their names."""
    return ValueError(
        "the model has normalisation layers whose statistics are part of the run, and a journal "
        "knows them by their names in the model: pass model=model beside the parameters"
    )


def snapshots_of_model() -> ValueError:
    """Explain that checkpoints belong to the owner of the model."""
    return ValueError(
        "snapshot_steps has no use here: save state_dict() of model and optimizer, and resume "
        "takes the steps behind them"
    )
