"""Transformers' `Trainer` with zeroth-order steps: `ZeroOrderTrainer`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from zomopi_core.errors import missing_extra

try:
    import transformers
except ImportError as error:  # pragma: no cover - shown in an environment without it
    raise missing_extra("transformers", "transformers") from error

import torch
from torch import Tensor, nn

from .torch import ZOMOPI

__all__ = ["ZeroOrderTrainer"]


class _TrainerOptimizer(ZOMOPI):
    """The optimizer of a Trainer: the step is taken where the Trainer computes the loss."""

    def step(self, closure: Any = None) -> Any:
        """Take a step; without a closure, where the Trainer would apply gradients, do nothing."""
        return None if closure is None else super().step(closure)


class ZeroOrderTrainer(transformers.Trainer):  # type: ignore[misc]
    """A `transformers.Trainer` that trains by forward passes alone.

    Datasets, logging, evaluation, checkpoints, resuming and the progress bar are those of the
    Trainer. The learning rate, its schedule, weight decay, accumulation over micro-batches and
    the seed are taken from the `TrainingArguments`; note that their default learning rate is made
    for other optimizers. The loss that is logged is the mean over a step's evaluations.

    Parameters
    ----------
    *args, **kwargs
        As for `transformers.Trainer`.
    zero_order : dict, optional
        Options of `zomopi_adapters.torch.ZOMOPI`, such as `method`, `rank`, `probes` or
        `binding`.
    groups : list of dict or callable, optional
        Param groups in the place of those of `zomopi_adapters.torch.default_groups`, or a
        function that makes them from the model.
    dropout : bool
        Whether the model is in training mode during a step. By default it is in evaluation mode:
        dropout would add noise to every difference.

    Raises
    ------
    ValueError
        For ``fp16=True``, whose scaling of gradients has no meaning here, and for several
        processes.

    Examples
    --------
    >>> import tempfile, torch
    >>> import transformers
    >>> from zomopi_adapters.transformers import ZeroOrderTrainer
    >>> config = transformers.OPTConfig(
    ...     vocab_size=20, hidden_size=8, word_embed_proj_dim=8, ffn_dim=16,
    ...     num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=16)
    >>> model = transformers.OPTForCausalLM(config)
    >>> rows = [{"input_ids": torch.arange(6), "labels": torch.arange(6)}] * 8
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     arguments = transformers.TrainingArguments(
    ...         folder, max_steps=2, learning_rate=1e-2, report_to=[], disable_tqdm=True,
    ...         use_cpu=True, dataloader_pin_memory=False)
    ...     trainer = ZeroOrderTrainer(
    ...         model, arguments, train_dataset=rows, zero_order={"rank": 4, "probes": 2})
    ...     trainer.remove_callback(transformers.PrinterCallback)
    ...     trainer.train().global_step
    2
    """

    optimizer: Any

    def __init__(
        self,
        *args: Any,
        zero_order: Mapping[str, Any] | None = None,
        groups: Any | Callable[[nn.Module], Any] = None,
        dropout: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._zero_order, self._groups, self._dropout = dict(zero_order or {}), groups, dropout
        self._closures: list[Callable[[], Tensor]] = []
        if self.args.fp16:
            raise ValueError(
                "fp16=True scales gradients, and here there are none; use bf16=True, or load the "
                "model in float16"
            )
        if self.args.world_size > 1:
            raise ValueError(
                "ZeroOrderTrainer runs in one process; spread a large model over GPUs by "
                "device_map='auto' instead"
            )

    def create_optimizer(self, model: nn.Module | None = None) -> Any:
        """Return the optimizer, made of the options and the training arguments."""
        if self.optimizer is None:
            model = self.model if model is None else model
            groups = self._groups(model) if callable(self._groups) else self._groups
            options = {"lr": self.args.learning_rate, "seed": self.args.seed}
            if self.args.weight_decay:
                options["weight_decay"] = self.args.weight_decay
            self.optimizer = _TrainerOptimizer(
                model if groups is None else groups, model=model, **options | self._zero_order
            )
        return self.optimizer

    @property
    def zero_order_optimizer(self) -> ZOMOPI:
        """The optimizer itself, without what the Trainer wraps around it."""
        optimizer: Any = self.optimizer
        while not isinstance(optimizer, ZOMOPI):
            optimizer = optimizer.optimizer
        return optimizer

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """Take a step with the last micro-batch of an accumulation; gather the others.

        Returns
        -------
        tensor
            The loss of the step; 0 for a micro-batch that is gathered.
        """
        model.train(self._dropout)
        inputs = self._prepare_inputs(inputs)
        # Losses over the tokens of all micro-batches are parts of a sum, not of a mean.
        parts = num_items_in_batch is not None and getattr(
            self, "model_accepts_loss_kwargs", False
        )
        parts = parts or getattr(self, "compute_loss_func", None) is not None

        def closure() -> Tensor:
            with self.compute_loss_context_manager():
                loss = self.compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
            return loss.mean() if self.args.n_gpu > 1 else loss

        self._closures.append(closure)
        if not self.accelerator.sync_gradients:
            return torch.zeros((), device=self.args.device)
        closures, self._closures = self._closures, []
        if parts:
            count = len(closures)
            closures = [lambda one=one: count * one() for one in closures]  # type: ignore[misc]
        loss = self.zero_order_optimizer.step(closures)
        return torch.as_tensor(loss, dtype=torch.float32, device=self.args.device)

    def _clip_grad_norm(self, model: nn.Module) -> None:
        """Return None: there are no gradients."""

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> None:
        """Return None: there are no gradients."""

    def _merge(self) -> None:
        if isinstance(getattr(self.optimizer, "optimizer", self.optimizer), ZOMOPI):
            self.zero_order_optimizer.merge()

    def save_model(self, *args: Any, **kwargs: Any) -> None:
        """Bring what was learned beside the weights into them, and save the model."""
        self._merge()
        super().save_model(*args, **kwargs)

    def _load_best_model(self) -> None:
        # What is beside the weights belongs to the last ones, not to those that are loaded.
        self.zero_order_optimizer.detach()
        super()._load_best_model()
