"""Parameters and their groups: names, ties, options, and sensible groups for a model."""

from __future__ import annotations

import inspect
import math
import numbers
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

import zomopi_core as zo
from zomopi_core.errors import unknown_name, wrong_method
from zomopi_core.method import Method

from . import _torch_errors as errors

# What a group may say beside the options of its method.
GROUP_KEYS = ("lr", "vector_lr", "method", "frozen", "name")


def named(params: Any) -> list[dict[str, Any]]:
    """Return groups whose "params" are tensors and whose "names" are theirs.

    Parameters
    ----------
    params : iterable of tensors, of (name, tensor), or of dicts with such an iterable as "params"
    """
    if isinstance(params, Tensor):
        raise TypeError(
            "params must be an iterable of parameters, got one tensor; put it in a list"
        )
    groups = list(params)
    if not groups or not isinstance(groups[0], Mapping):
        groups = [{"params": groups}]
    result, count = [], 0
    for group in groups:
        members = group["params"]
        members = [members] if isinstance(members, Tensor) else list(members)
        pairs = []
        for member in members:
            if isinstance(member, Tensor):
                pairs.append((f"param{count:06d}", member))
            else:
                pairs.append((str(member[0]), member[1]))
            count += 1
        result.append({**group, "params": [p for _, p in pairs], "names": [n for n, _ in pairs]})
    return result


def storage(tensor: Tensor) -> Any:
    """Return what two tensors have in common that share all of their memory."""
    if is_wrapper(tensor) or tensor.device.type == "meta":
        return id(tensor)
    if tensor.numel() == 0 or 0 in tensor.stride():
        return id(tensor)
    try:
        return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.device
    except RuntimeError:  # some subclasses have no memory of their own
        return id(tensor)


def is_wrapper(tensor: Tensor) -> bool:
    """Tell whether a tensor only stands for others, as the quantised weights of torchao do.

    Its dtype is that of what it stands for, and nothing can be added to it.
    """
    return bool(is_traceable_wrapper_subclass(tensor))


def _is_sharded(tensor: Tensor) -> bool:
    return is_wrapper(tensor) and hasattr(tensor, "device_mesh")  # a DTensor


def prepared(groups: list[dict[str, Any]], known: set[Any]) -> list[dict[str, Any]]:
    """Leave out what is frozen for good and what is `known`, which grows; keep the rest."""
    kept = []
    for group in groups:
        pairs = []
        for name, param in zip(group["names"], group["params"], strict=True):
            if not param.requires_grad or storage(param) in known:
                continue
            if not param.is_floating_point() or param.is_complex():
                raise errors.not_floating(name, param.dtype)
            if is_wrapper(param):
                raise errors.wrapper(name, type(param).__name__)
            if param.numel() == 0:
                continue
            known.add(storage(param))
            pairs.append((name, param))
        if pairs:
            names, params = zip(*sorted(pairs, key=lambda pair: pair[0]), strict=True)
            kept.append({**group, "names": list(names), "params": list(params)})
    if not kept:
        raise errors.nothing_to_train()
    return kept


def method_of(
    group: Mapping[str, Any], general: Mapping[str, Any]
) -> tuple[Method, float | str | None, set[str]]:
    """Return the method of a group, its learning rate, and which general options it took.

    Parameters
    ----------
    group : dict
        Its own options come first.
    general : dict
        The options of the optimizer: "method", "lr", "vector_lr" and those of methods.
    """
    other = {"params", "names", *GROUP_KEYS, *_TORCH_KEYS}
    own = {k: v for k, v in group.items() if k not in other}
    method, lr, vector_lr = (
        general[k] if group.get(k) is None else group[k] for k in ("method", "lr", "vector_lr")
    )
    for key, rate in (("lr", lr), ("vector_lr", vector_lr)):
        number = isinstance(rate, numbers.Real) and not isinstance(rate, bool)
        if rate is not None and rate != "auto" and not (number and 0 < rate < math.inf):
            raise errors.wrong_rate(key, rate)
    shared = {k: v for k, v in general.items() if k not in GROUP_KEYS}
    if isinstance(method, Method) and group.get("method") is not None:
        shared = {}  # the general options are made for the general method
    elif isinstance(method, str) and (name := _plain(method)) in zo.methods():
        shared = {k: v for k, v in shared.items() if k in options_of(name)}
    if general["lr"] == "auto" and lr is not None and lr != "auto":
        # The loss is probed as in the groups whose rate is tuned.
        made = _made(method, "auto", vector_lr, {**shared, **own})
        return _with_rate(made, lr, vector_lr), lr, set(shared)
    return _made(method, lr, vector_lr, {**shared, **own}), lr, set(shared)


# What schedulers of Torch, and its own optimizers, write into groups.
_TORCH_KEYS = ("base_lr", "initial_lr", "param_names", "max_lr", "min_lr")


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")


def _made(
    method: str | Method,
    lr: float | str | None,
    vector_lr: float | str | None,
    options: Mapping[str, Any],
) -> Method:
    """Return a method with the options that its maker takes."""
    if isinstance(method, Method):
        if options:
            raise errors.option_beside_method(options, method.name)
        made = method
        if lr is not None:
            made = _with_rate(made, lr, vector_lr)
    else:
        if not isinstance(method, str):
            raise wrong_method(method)
        name = _plain(method)
        if name not in zo.methods():
            raise unknown_name("method", method, zo.methods())
        maker = getattr(zo, name)
        if maker.__module__ == "zomopi_core.first_order":
            raise errors.first_order(name)
        for option in options:
            if option not in options_of(name):
                raise errors.unknown_option(option, name, options_of(name))
        keywords = dict(options)
        if lr is not None:
            keywords["learning_rate"] = lr
        if vector_lr is not None:
            if "vector_learning_rate" not in inspect.signature(maker).parameters:
                raise errors.unknown_option("vector_lr", name, options_of(name))
            keywords["vector_learning_rate"] = vector_lr
        made = maker(**keywords)
    if made.estimator is None:
        raise errors.first_order(made.name)
    if made.snapshots is not None:
        raise errors.needs_snapshots(made.name)
    return made


def _with_rate(method: Method, lr: float | str, vector_lr: float | str | None) -> Method:
    matrices = replace(method.matrices, update=replace(method.matrices.update, learning_rate=lr))
    vectors = method.vectors
    own = vectors.update.name == "vector_learning_rate"
    if lr == "auto" and vector_lr is None and vectors.update.learning_rate is None:
        vector_lr = lr
    if vector_lr is not None or not own:
        rate = lr if vector_lr is None else vector_lr
        vectors = replace(vectors, update=replace(vectors.update, learning_rate=rate))
    return replace(method, matrices=matrices, vectors=vectors)


def options_of(name: str) -> tuple[str, ...]:
    """Return the options of a method of the catalogue, as a group may give them."""
    names = inspect.signature(getattr(zo, name)).parameters
    return tuple(n for n in names if n not in {"learning_rate", "vector_learning_rate"})


_CONVOLUTIONS = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d,
    nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip


def is_quantised_linear(module: nn.Module) -> bool:
    """Tell whether a module is a linear layer whose weight is not of floating point.

    Quantised layers of all libraries have ``in_features`` and ``out_features``; their weight is
    an integer tensor, packed, or a subclass that stands for integers and their scales.
    """
    sizes = getattr(module, "in_features", None), getattr(module, "out_features", None)
    if not all(isinstance(size, int) for size in sizes):
        return False
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):  # packed: weight is a method, or is not there
        return not any(p.requires_grad for p in module.parameters(recurse=False))
    stands_for_others = is_wrapper(weight) and not _is_sharded(weight)
    return not weight.is_floating_point() or weight.is_quantized or stands_for_others


def padding_rows(model: nn.Module | None) -> dict[Any, int]:
    """Return the rows that no gradient reaches, by the `storage` of their tables.

    Those of ``padding_idx`` of embeddings, unless another module uses the table, as a tied head.
    """
    found: dict[Any, set[int | None]] = {}
    for module in () if model is None else model.modules():
        row = module.padding_idx if isinstance(module, nn.Embedding | nn.EmbeddingBag) else None
        for param in module.parameters(recurse=False):
            found.setdefault(storage(param), set()).add(row)
    return {key: row for key, (row, *others) in found.items() if row is not None and not others}


class Carrier(nn.Parameter):  # type: ignore[misc]
    """Stands for the weight of a quantised linear layer: its shape, without its memory.

    Attributes
    ----------
    module : torch.nn.Module
        The layer.
    """

    module: nn.Module

    @staticmethod
    def of(module: Any) -> Carrier:
        """Return a carrier for a layer."""
        tensors = [*module.parameters(), *module.buffers()]
        device = tensors[0].device if tensors else None  # a packed weight is on the host
        wide = any(t.dtype == torch.float64 for t in tensors)
        one = torch.zeros((), dtype=torch.float64 if wide else torch.float32, device=device)
        carrier = Carrier(one.expand(module.out_features, module.in_features))
        carrier.module = module
        return carrier


def default_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Return param groups for a model: matrices, stacks of matrices, embeddings, vectors.

    Parameters
    ----------
    model : torch.nn.Module
        Frozen parameters (``requires_grad=False``) are left out. Linear layers with quantised
        weights are in, under the name of their weight: an overlay trains them beside it.

    Returns
    -------
    list of dict
        Groups named "matrices" (two axes, and the kernels of convolutions, which are seen as
        (first axis, the rest)), "stacks" (other parameters with three axes or more, such as
        stacked experts: a batch of matrices over the leading axes), "embeddings" and "vectors".
        Empty ones are left out. Each is a dict to which options can be added.

    Examples
    --------
    >>> import torch
    >>> from zomopi_adapters.torch import ZOMOPI, default_groups
    >>> model = torch.nn.Sequential(torch.nn.Embedding(9, 4), torch.nn.Linear(4, 2))
    >>> groups = default_groups(model)
    >>> [(g["name"], [name for name, _ in g["params"]]) for g in groups]
    [('matrices', ['1.weight']), ('embeddings', ['0.weight']), ('vectors', ['1.bias'])]
    >>> for group in groups:
    ...     group["frozen"] = group["name"] == "embeddings"
    >>> optimizer = ZOMOPI(groups, lr=1e-2)
    """
    kernels: set[int] = set()
    tables: set[int] = set()
    seen: set[Any] = set()
    groups: dict[str, list[tuple[str, Tensor]]] = {
        name: [] for name in ("matrices", "stacks", "embeddings", "vectors")
    }
    for module in model.modules():
        own = [getattr(module, "weight", None)]
        if isinstance(module, _CONVOLUTIONS):
            kernels.update(map(id, own))
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            tables.update(map(id, own))
    quantised = {n: m for n, m in model.named_modules() if is_quantised_linear(m)}
    beside = {id(getattr(m, "weight", None)) for m in quantised.values()}
    for name, param in model.named_parameters():
        if not param.requires_grad or not param.is_floating_point() or storage(param) in seen:
            continue
        if id(param) in beside:
            continue
        seen.add(storage(param))
        if id(param) in tables:
            kind = "embeddings"
        elif param.ndim < 2:
            kind = "vectors"
        else:
            kind = "matrices" if param.ndim == 2 or id(param) in kernels else "stacks"
        groups[kind].append((name, param))
    for name, module in quantised.items():
        groups["matrices"].append((f"{name}.weight" if name else "weight", Carrier.of(module)))
    result: list[dict[str, Any]] = [
        {"params": params, "name": name} for name, params in groups.items() if params
    ]
    for group in result:
        if group["name"] == "stacks":
            group["stacked"] = True
    return result


def check_rates(groups: list[dict[str, Any]]) -> None:
    """Raise where a scheduler has left a learning rate with which no step can be taken."""
    for number, group in enumerate(groups):
        try:
            rate = float(group["lr"])
        except (TypeError, ValueError):
            rate = math.nan
        if not 0 <= rate < math.inf:
            raise errors.rate_of_group(number, group["lr"])
