"""Fine-tune Torch models from forward passes alone: `ZOMOPI`, a `torch.optim.Optimizer`."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from zomopi_core.errors import missing_extra

try:
    import torch
except ImportError as error:  # pragma: no cover - shown in an environment without Torch
    raise missing_extra("torch", "torch") from error

from torch import Tensor, nn

from zomopi_core._checks import check_count, check_name, flag
from zomopi_core.failures import Retry
from zomopi_core.journal import Journal, as_journal
from zomopi_core.method import Method
from zomopi_core.sampling import Sampler
from zomopi_core.subspace import Sketch

from . import _torch_errors as errors
from . import _torch_groups as groups_
from . import _torch_state as state_
from ._torch_activation import ActivationBasis
from ._torch_evaluate import Closure
from ._torch_groups import default_groups
from ._torch_journal import StepJournal, replay_recorded
from ._torch_parameters import Parameters
from ._torch_repetition import as_failures
from ._torch_slices import per_probe, tiled
from ._torch_stepper import Stepper

__all__ = ["ZOMOPI", "default_groups", "per_probe", "tiled"]

log = logging.getLogger("zomopi")


class ZOMOPI(torch.optim.Optimizer):  # type: ignore[misc]
    """Train by forward passes alone: a step calls a closure several times, without gradients.

    All parameters are perturbed together along random low-rank directions; differences of the
    loss become a step. Neither activations nor gradients are kept.

    Parameters
    ----------
    params : torch.nn.Module, or iterable
        A model, whose `default_groups` are taken; or parameters, or (name, parameter), or dicts
        of such an iterable as "params" and options of the group. Parameters that do not require
        a gradient are skipped, tied ones are taken once. Names decide the random numbers:
        parameters are numbered in the order of their sorted names.
    lr : float or "auto", optional
        Learning rate of matrices, for `zo_mopi` the spectral norm of a step. ``"auto"`` measures
        it by line searches (`zomopi_core.tuning`), and for `zo_mopi` what else is not given is
        tuned too. By default that of the method. Without a number ``group["lr"]`` is 1 and a
        factor of the rate. Schedulers may change ``group["lr"]``; the steps of vectors follow in
        proportion.
    method : str or Method
        A zeroth-order method of the catalogue, by name or as an object.
    vector_lr : float or "auto", optional
        Learning rate of parameters with one axis or none, for methods that have one of their own;
        by default the method's, or tuned with `lr`.
    binding : {"auto", "in_place", "overlay"}
        How a perturbed parameter is evaluated. ``"in_place"`` changes the weights and back;
        ``"overlay"`` leaves them alone and adds the difference to the outputs of the layers,
        which needs the model. ``"auto"`` chooses for each parameter, see `bindings`.
    batched : bool
        Whether all probes of a step go through the model in one forward pass; needs
        ``binding="overlay"`` and a closure with `tiled` and `per_probe`. Where a model does not
        allow it the probes run one by one, with a warning.
    chunk : int, optional
        Largest number of evaluations in one forward pass with `batched`; by default all.
    sketch : {"activation"}, optional
        Take the subspaces of linear layers from their inputs, the leading right singular vectors
        of a calibration batch: the first evaluation of a step with a refresh. The frame is then
        on the right side. Needs a method with frames.
    seed : int or Sampler
        Key of all draws.
    model : torch.nn.Module, optional
        The model, where `params` are its parameters.
    generators : sequence of torch.Generator or numpy.random.Generator
        Generators of your own that the closure draws from. They are wound back, as the global
        ones are, so that all evaluations of a step see the same numbers.
    on_failure : {"skip", "auto", "retry", "raise"} or Retry
        What a loss that is NaN or infinite does: its probe is left out, evaluated again as long as
        that helps, as often as `zomopi_core.Retry` says, or `NonFiniteLossError` is raised. The
        weights are then back where they were. All but ``"skip"`` wait for the device at each step.
    reference : {"device", "host"}, optional
        Where the copy of 16-bit weights is kept that makes their restoration exact in place; by
        default on their device if memory is left there.
    journal : str, path or Journal, optional
        File in which each step is recorded before the weights move, so that `resume` brings a
        model from its start to where it was. With frames from activations it grows at each
        refresh; statistics of batch normalisation are part of it, and need the model.
    **options
        Options of the method: for ``"zo-mopi"`` `rank`, `spectral_rank`, `probes`, `smoothing`,
        `momentum`, `refresh_every`, `refresh`, `difference`, `weight_decay`, `side` and
        `stacked`, as in `zomopi_core.zo_mopi`.

    Raises
    ------
    TypeError, ValueError
        If an option cannot be used; the message names it and the remedy.

    Notes
    -----
    A group may have its own `lr`, `vector_lr`, `method` and options of the method; ``frozen=True``
    leaves its parameters alone. How the loss is probed (`probes`, `smoothing`, `difference`) is
    the same for all.

    Examples
    --------
    >>> import torch
    >>> from zomopi_adapters.torch import ZOMOPI
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Linear(8, 1)
    >>> x = torch.randn(64, 8)
    >>> y = x.sum(dim=1, keepdim=True)
    >>> optimizer = ZOMOPI(model.named_parameters(), lr=0.05, vector_lr=0.01, probes=2)
    >>> loss = [optimizer.step(lambda: torch.nn.functional.mse_loss(model(x), y))
    ...         for _ in range(150)]
    >>> bool(loss[-1] < 0.1 * loss[0])
    True
    """

    def __init__(
        self,
        params: Any,
        lr: float | str | None = None,
        *,
        method: str | Method = "zo-mopi",
        vector_lr: float | str | None = None,
        binding: str = "auto",
        batched: bool = False,
        chunk: int | None = None,
        sketch: str | None = None,
        seed: int | Sampler = 0,
        model: nn.Module | None = None,
        generators: Sequence[Any] = (),
        on_failure: str | Retry = "skip",
        reference: str | None = None,
        journal: str | os.PathLike[str] | Journal | None = None,
        **options: Any,
    ) -> None:
        check_name("binding", binding, ("auto", "in_place", "overlay"))
        if sketch is not None:
            check_name("sketch", sketch, ("activation",))
        if reference is not None:
            check_name("reference", reference, ("device", "host"))
        if chunk is not None:
            check_count("chunk", chunk)
        flag("batched", batched)
        if not isinstance(model, nn.Module | None):
            raise errors.wrong_model(model)
        if isinstance(params, nn.Module):
            model = params if model is None else model
            params = default_groups(params)
        if model is None and (binding == "overlay" or batched):
            raise errors.needs_model("batched=True" if batched else "binding='overlay'")
        failures = as_failures(on_failure)
        self.model = model
        self._parameters = Parameters(model, binding, reference)
        self._leaves = self._parameters.leaves
        self._basis = ActivationBasis() if sketch else None
        self._options = {"lr": lr, "vector_lr": vector_lr, "method": method, **options}
        self._busy = False
        self._stores: set[Any] = set()
        self._taken: set[str] = set()
        defaults = {"lr": _factor(lr), "frozen": False}
        super().__init__(groups_.prepared(groups_.named(params), self._stores), defaults)
        self._check_options()
        self._stepper = Stepper(
            self.param_groups,
            self._parameters,
            seed=seed,
            failures=failures,
            generators=generators,
            basis=self._basis,
            batched=batched,
            chunk=chunk,
        )
        if (config := as_journal(journal)) is not None:
            self._stepper.journal = StepJournal.begin(config, self._stepper, self.param_groups)
        log.info("%s", self.describe())

    # Groups and leaves

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as `torch.optim.Optimizer.add_param_group` does.

        Parameters
        ----------
        param_group : dict
            "params" and the group's options; its parameters may have names. They are numbered
            after those that are there.

        Raises
        ------
        TypeError, ValueError
            If an option cannot be used, or the run has a journal, which begins with all of them.
        """
        if not self._leaves:  # of the constructor, which makes the leaves of all groups at once
            self._take_group(param_group)
            return
        if self._stepper.journal is not None:
            raise errors.group_beside_journal()
        count, stores = len(self.param_groups), set(self._stores)
        try:
            self._take_group(param_group)
            self._stepper.enlist(self.param_groups)
        except BaseException:
            self._stores = stores
            del self.param_groups[count:]
            raise

    def _take_group(self, param_group: dict[str, Any]) -> None:
        group = dict(param_group)
        if "names" not in group:
            (group,) = groups_.prepared(groups_.named([group]), self._stores)
        made, lr, taken = groups_.method_of(group, self._options)
        self._taken |= taken
        if self._basis is not None and not isinstance(made.matrices.subspace, Sketch):
            raise errors.needs_frames(made.name)
        others = self.param_groups[:1]
        if others and others[0]["method"].finite_difference != made.finite_difference:
            raise errors.different_estimators()
        group["method"] = made
        group["lr"] = _factor(lr)
        group["base_lr"] = group["lr"]
        group.setdefault("frozen", False)
        super().add_param_group(group)

    def _check_options(self) -> None:
        """Refuse general options that no group takes."""
        general = {k for k in self._options if k not in groups_.GROUP_KEYS}
        for option in sorted(general - self._taken):
            name = str(self._options["method"]).lower().replace("-", "_")
            known = groups_.options_of(name)
            raise errors.unknown_option(option, name, known)

    @property
    def batched(self) -> bool:
        """Whether all probes of the next step go through the model in one forward pass."""
        return self._stepper.batched

    @batched.setter
    def batched(self, batched: bool) -> None:
        self._stepper.batched = batched

    @property
    def chunk(self) -> int | None:
        """Largest number of evaluations in one forward pass with `batched`."""
        return self._stepper.chunk

    @chunk.setter
    def chunk(self, chunk: int | None) -> None:
        self._stepper.chunk = chunk

    @property
    def bindings(self) -> dict[str, str]:
        """How each parameter is evaluated, by name.

        ``"in_place"``, ``"in_place, reference on <device>"`` or ``"overlay"``. A parameter that a
        function uses for which no overlay is known is moved in place after the step in which it
        did so.
        """
        return self._parameters.bindings()

    def describe(self) -> str:
        """Return one line for each way in which parameters are evaluated, with their number."""
        return self._parameters.describe()

    # A step

    def step(self, closure: Closure | Sequence[Closure] | None = None) -> Any:
        """Take a step.

        Parameters
        ----------
        closure : callable, or sequence of callables
            Computes the loss of the batch: one real number, of Torch or Python. It is called
            once for each evaluation of the method, at some steps more often for what is tuned,
            without gradients, and may be anything, also a metric that is not differentiable. The
            mean over several, one for each micro-batch, is the loss of a step.

        Returns
        -------
        tensor or float
            The mean of the losses at the step's probes that are finite, close to the loss at the
            weights.

        Raises
        ------
        Exception
            What the closure raises; the weights are then back where they were.
        NonFiniteLossError
            With ``on_failure="raise"``.
        """
        closures: list[Any] = list(closure) if isinstance(closure, Sequence) else [closure]
        if not closures or not all(callable(c) for c in closures):
            raise errors.no_closure()
        # What is made in inference mode could not be changed outside of it.
        with self._between_steps("step"), torch.inference_mode(False), torch.no_grad():
            return self._stepper.take(closures, self.param_groups)

    @contextlib.contextmanager
    def _between_steps(self, what: str) -> Iterator[None]:
        """Surround what a closure must not do: the weights stand at a probe meanwhile."""
        if self._busy:
            raise errors.within_a_step(what)
        self._busy = True
        try:
            yield
        finally:
            self._busy = False

    def resume(self, journal: str | os.PathLike[str] | Journal, *, exact: bool = True) -> None:
        """Take the steps of a journal, without calling the model, and go on recording there.

        The model and this optimizer must be as they were when the run began, or as they were at a
        later step, by `load_state_dict` of both.

        Parameters
        ----------
        journal : str, path or Journal
        exact : bool
            As in `zomopi_core.resume`.

        Raises
        ------
        JournalError
            If the journal cannot be used, or belongs to another model or optimizer.
        """
        config = as_journal(journal)
        assert config is not None
        stepper = self._stepper
        if stepper.journal is not None:
            raise errors.wrong_journal("it has one of its own")
        opened = StepJournal.resume(config, stepper, self.param_groups, exact)
        try:
            for recorded in opened.left(stepper):
                replay_recorded(self, stepper, recorded)
            opened.restore_statistics(self.model)
        except BaseException:
            opened.close()
            raise
        stepper.journal = opened

    def close(self) -> None:
        """Close the journal, if there is one; further steps are not recorded."""
        if self._stepper.journal is not None:
            self._stepper.journal.close()
            self._stepper.journal = None

    # What is beside the weights

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def merge(self) -> None:
        """Bring what was learned beside the weights into them, as a refresh does.

        Afterwards ``model.state_dict()`` is the trained model. 16-bit weights are rounded
        stochastically. Quantised layers keep their update, see `adapter`; in place nothing
        changes but for 16 bits, whose float32 coordinates are rounded away.
        """
        with self._between_steps("merge"):
            self._stepper.merge()

    def adapter(self) -> dict[str, dict[str, Tensor]]:
        """Return what was learned beside the weights, as low-rank factors.

        Returns
        -------
        dict
            Name of a weight -> ``{"left": (m, r), "right": (r, n)}``, whose product is added to
            it; vectors have ``{"update": ...}``. Weights without an update are left out.
        """
        return self._parameters.adapter()

    def detach(self) -> None:
        """Merge, and take the overlay off the model."""
        self.merge()
        self._parameters.unwrap()

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resumed run needs: tensors, numbers and strings.

        With the model's own state a run goes on bit for bit. ``torch.load`` reads it with
        ``weights_only=True``.
        """
        return state_.pack(self._stepper, self.param_groups)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over a state; this optimizer must have been made with the same options.

        Load the model's state first or afterwards.

        Parameters
        ----------
        state_dict : dict
            What `state_dict` returned.

        Raises
        ------
        ValueError
            If the names or shapes of the parameters, or the methods, are others.
        """
        with self._between_steps("load_state_dict"):
            state_.unpack(self._stepper, self.param_groups, state_dict)
            self._parameters.expect_weights(True)

    def __repr__(self) -> str:
        return f"{super().__repr__()}\n{self.describe()}"

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("a ZOMOPI optimizer cannot be pickled; save its state_dict()")


def _factor(lr: float | str | None) -> float:
    """Return what `group["lr"]` is: without a number, a factor of the method's own rate."""
    return 1.0 if lr is None or isinstance(lr, str) else lr
