"""Checkpoints of the Torch optimizer: plain tensors, numbers and strings, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from zomopi_core.adaptive_rank import Spectrum
from zomopi_core.momentum import Moments
from zomopi_core.rule import LeafState
from zomopi_core.sampling import Randomness

from . import _torch_errors as errors
from ._torch_accumulating import Accumulating
from ._torch_leaf import Leaf, Source

if TYPE_CHECKING:
    from ._torch_stepper import Stepper

VERSION = 2
# What leaves keep beside the state of their method, in its precision.
_BESIDE = (
    "total", "settled", "shrink", "best_total", "best_shrink", "direction", "since", "kept",
)  # fmt: skip


def described(value: Any) -> str:
    """Return what a method is, without what differs between processes."""
    import re

    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _packed(leaf: Leaf) -> dict[str, Any]:
    state = leaf.state
    result: dict[str, Any] = {"name": leaf.name, "shape": list(leaf.param.shape)}
    frame = state.frame
    if isinstance(frame, tuple):
        result["frame"], result["second_frame"] = frame
    elif frame is not None:
        result["frame"] = frame
    if not leaf._forgets:
        result["momentum"] = state.momentum
    if isinstance(state.right, Spectrum):
        result.update({f"right_{name}": value for name, value in state.right._asdict().items()})
    elif state.right is not None:
        result["right"] = state.right
    if state.unit is not None:
        result["unit"] = state.unit
    if isinstance(state.moments, Moments):
        result.update(state.moments._asdict())
    elif isinstance(state.moments, Tensor):
        result["moments"] = state.moments
    elif state.moments is not None:
        raise TypeError(
            f"{leaf.name}: moments of type {type(state.moments).__name__} have no form"
        )
    if leaf.succeeds:
        result["in_place"] = True
    return result | leaf.extra_state()


def pack(stepper: Stepper, param_groups: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the state of an optimizer as plain values."""
    places = {id(leaf.param): leaf for leaf in stepper.leaves}
    basis = stepper.basis
    state, groups, count = {}, [], 0
    for group in param_groups:
        plain = {k: v for k, v in group.items() if k not in {"params", "method"}}
        plain["method"] = described(group["method"])
        plain["params"] = list(range(count, count + len(group["params"])))
        for number, param in zip(plain["params"], group["params"], strict=True):
            leaf = places[id(param)]
            state[number] = _packed(leaf)
            if basis is not None and leaf.index in basis.adopted:
                state[number]["side"] = basis.adopted[leaf.index]
        count += len(group["params"])
        groups.append(plain)
    seed = stepper.seed if isinstance(stepper.seed, int) else None
    zomopi = {
        "version": VERSION,
        "step": stepper.step,
        "refreshed_at": stepper.refreshed_at,
        "seed": seed,
        "started": stepper.started,
        "warned": stepper.warned,
        "tuning": stepper.tuner.pack(),
        "failures": stepper.failures.state(),
    }
    return {"state": state, "param_groups": groups, "zomopi": zomopi}


def unpack(stepper: Stepper, groups: list[dict[str, Any]], saved: Mapping[str, Any]) -> None:
    """Take over what `pack` returned, after comparing all of it with the optimizer."""
    own = saved.get("zomopi")
    if own is None or own.get("version") != VERSION:
        raise errors.wrong_checkpoint("it was not saved by this version of ZOMOPI")
    basis = stepper.basis
    if len(groups) != len(saved["param_groups"]):
        raise errors.wrong_checkpoint(
            f"it has {len(saved['param_groups'])} groups, the optimizer {len(groups)}"
        )
    source = Source(stepper.random, stepper.step)
    entries = saved["state"].values()
    stepper.parameters.fall_back({x["name"] for x in entries if "in_place" in x}, source)
    places = {id(leaf.param): leaf for leaf in stepper.leaves}
    pairs = []
    for group, other in zip(groups, saved["param_groups"], strict=True):
        if described(group["method"]) != other["method"]:
            raise errors.wrong_checkpoint(
                f"the method was {other['method']}, here it is {described(group['method'])}"
            )
        if len(group["params"]) != len(other["params"]):
            raise errors.wrong_checkpoint("a group has another number of parameters")
        for param, number in zip(group["params"], other["params"], strict=True):
            leaf, entry = places[id(param)], saved["state"][number]
            if entry["name"] != leaf.name or entry["shape"] != list(leaf.param.shape):
                raise errors.wrong_checkpoint(
                    f"{entry['name']} of shape {entry['shape']} was saved where the optimizer has "
                    f"{leaf.name} of shape {list(leaf.param.shape)}"
                )
            if "total" in entry and not isinstance(leaf, Accumulating):
                raise errors.wrong_checkpoint(
                    f"{leaf.name} has steps beside the weight there, and is moved in place here"
                )
            pairs.append((leaf, entry))
    for leaf, entry in pairs:
        if "side" in entry:
            if basis is None:
                raise errors.wrong_checkpoint("it was saved with sketch='activation'")
            basis.adopt(leaf, entry["side"])
            basis.forget()  # that it is fresh: its state is loaded
            basis.seen = True
        _load(leaf, entry)
    for group, other in zip(groups, saved["param_groups"], strict=True):
        group.update({k: v for k, v in other.items() if k not in {"params", "method"}})
    stepper.step, stepper.refreshed_at = own["step"], own["refreshed_at"]
    stepper.warned = own["warned"]
    stepper.tuner.unpack(own["tuning"])
    if "failures" in own:  # states of before have none
        stepper.failures.restore(own["failures"])
    stepper.started = own["started"].to(stepper.started, copy=True)
    if own["seed"] is not None:
        stepper.seed = own["seed"]
        stepper.random = Randomness(own["seed"], stepper.leaves[0].param.detach())


def _load(leaf: Leaf, entry: Mapping[str, Any]) -> None:
    like = leaf.state.momentum

    def tensor(name: str) -> Tensor | None:
        value = entry.get(name)
        return None if value is None else value.to(like, copy=True)

    frame: Any = tensor("frame")
    if "second_frame" in entry:
        frame = frame, tensor("second_frame")
    moments, right = leaf.state.moments, leaf.state.right
    if isinstance(moments, Tensor):
        moments = tensor("moments")
    elif moments is not None:
        moments = type(moments)(*(tensor(name) for name in moments._fields))
    if isinstance(right, Spectrum):
        right = Spectrum(*(tensor(f"right_{name}") for name in Spectrum._fields))
    else:
        right = tensor("right")
    momentum = tensor("momentum")
    if momentum is None:  # without memory only its shape counts
        shape = leaf.rule.subspace.coordinate_shape(tuple(leaf.param.shape))
        momentum = like.new_zeros(()).expand(shape)
    leaf.set_state(LeafState(frame, momentum, moments, right, tensor("unit")))
    extra = {}
    for name in _BESIDE:
        if name in entry:
            extra[name] = entry[name].to(like, copy=True)
    if "reference" in entry:
        extra["reference"] = entry["reference"]
    leaf.load_extra(extra)
    leaf.probe, leaf.scale, leaf._held = None, 0.0, None
