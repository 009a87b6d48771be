"""The only file that knows DeepSpeed: one optimizer step over all ranks, and its state as named tensors."""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from pydantic import ValidationError
from torch import Tensor, nn

from kineograph.errors import Failure, UserError
from pipelines.train.optimizer import (
    LR_SCALE,
    ClippedAdamW,
    DeepSpeedConfig,
    OptimizerConfig,
    freeze,
    near,
    parameter_groups,
)
from pipelines.train.parts import Part, dealt, fill, gather

# Where DeepSpeed looks for itself it warns that it found a CPU.
os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")

import deepspeed
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

MOMENTS = ("exp_avg", "exp_avg_sq")
STEP = "step"
"""Among the moments: how many steps Adam has taken. Fewer than were planned where some were skipped."""


class Update(NamedTuple):
    """What came of a step."""

    gradient_norm: float
    """Global, before clipping; inf where it is not finite."""
    is_skipped: bool
    """The gradient was not finite: weights, moments and Adam's step count are as they were, on every rank."""


class Engine:
    """A model under DeepSpeed ZeRO with AdamW; torch.distributed must be up.

    A step is any number of forward calls and backward passes, then an update. Every rank must make as many of them, and the
    n-th pass of every rank must reach the same parameters. ``module`` has whole weights on every rank for stage 0 to 2.

    Weights, gradients, moments and what the ranks send each other are fp32; with ``precision`` bf16 the forward runs under
    autocast. (DeepSpeed could send the weights of stage 3 in bf16, but only together with the gradients, whose sum over
    ranks would then have 8 bits.) Parameters that need no gradient stay as they are and have no moments.

    The model is built whole on every rank before stage 3 takes it apart, so each device must hold it once in fp32: 40 GB
    for 10 billion parameters.
    """

    def __init__(
        self,
        model: nn.Module,
        config: OptimizerConfig,
        zero: DeepSpeedConfig,
        precision: Literal["fp32", "bf16"] = "fp32",
    ) -> None:
        """Raises UserError where a pattern of ``config`` matches no parameter, none is left to train, or DeepSpeed does not
        know a raw key."""
        _quieten()
        freeze(model, config.freeze)
        self._is_offloaded = zero.offload != "none"
        # One rank has nothing to share, and the plain way takes least time and memory.
        self._stage = zero.zero_stage if dist.get_world_size() > 1 or self._is_offloaded else 0
        self._max_skipped, self._skipped_in_a_row = config.max_skipped, 0
        self._shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        groups = parameter_groups(model, config)
        adam: dict[str, Any] = {"lr": config.lr, "betas": config.betas, "fused": True}
        self._adam = (
            torch.optim.AdamW(groups, **adam) if self._stage else ClippedAdamW(groups, config.clip_norm, **adam)
        )
        trained = sum(p.numel() for group in groups for p in group["params"])
        settings = _deepspeed_config(config, zero, self._stage, precision, trained)
        try:
            self._engine, *_ = deepspeed.initialize(
                model=model, optimizer=self._adam, dist_init_required=False, config=settings
            )
        except ValidationError as error:
            raise UserError(_explain(error)) from error
        if not self._stage and dist.get_world_size() == 1:
            self._engine.enable_backward_allreduce = False  # it would copy all gradients, to send them to nobody
        self.module: Any = self._engine.module
        self.device: torch.device = self._engine.device
        self._losses = torch.zeros((), device=self.device)
        self._last_inputs: tuple[Any, ...] = ()
        for weights in self._flat_weights():  # Adam would make its state at the first step, when memory may run out
            self._adam.state[weights] = {
                STEP: torch.zeros((), device=weights.device),
                **{moment: torch.zeros_like(weights, requires_grad=False) for moment in MOMENTS},
            }

    # Steps.

    def __call__(self, *inputs: Any) -> Any:
        """What the module's ``forward`` gives: what a loss is computed from as tensors, or in a tuple, list or dict, since
        DeepSpeed prepares for the backward pass where the gradient reaches them."""
        self._last_inputs = inputs if self.needs_equal_calls else ()
        return self._engine(*inputs)

    @property
    def needs_equal_calls(self) -> bool:
        """Whether all ranks must call the module equally often between updates: in every call under stage 3 they send each
        other its weights."""
        return self._stage == 3

    def call_for_others(self) -> Tensor:
        """0 as part of a loss, from a call more with the first clip of the last one, for ranks that call more often."""
        return 0 * self._engine(*(part[:1] for part in self._last_inputs)).sum()

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of ``loss`` to what the step has so far, in fp32.

        The gradient of a step is that of the sum of a rank's losses, averaged over ranks.
        """
        self._losses += loss.detach()
        self._engine.backward(loss, scale_wrt_gas=False)

    def update(self, lr: float) -> Update:
        """Clip the gradient and take a step with ``lr``, times what the recipe says of a layer. Every rank must call it.

        Raises Failure where the gradient was not finite in too many steps in a row.
        """
        for group in self._adam.param_groups:
            group["lr"] = lr * group[LR_SCALE]
        self._engine.step()
        is_skipped = not self._engine.was_step_applied()
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if is_skipped else 0
        if self._skipped_in_a_row >= self._max_skipped:
            self._give_up()
        self._losses.zero_()
        self._forget_gradients()
        return Update(math.inf if is_skipped else float(self._engine.get_global_grad_norm()), is_skipped)

    def _forget_gradients(self) -> None:
        """Where DeepSpeed keeps gradients until the next are laid over them, a parameter that takes no part in a step would
        get those of an earlier one."""
        optimizer = self._engine.optimizer
        if self._stage == 3:
            optimizer.grad_partitions_flat_buffer.zero_()
        if self._is_offloaded:
            for weights in self._flat_weights():
                assert weights.grad is not None
                weights.grad.zero_()
            if self._stage < 3:
                for gradient in optimizer.accumulated_grads_in_cpu.values():
                    gradient.zero_()

    def _give_up(self) -> None:
        is_bad = (~self._losses.isfinite()).float()
        dist.all_reduce(is_bad)
        what = "the loss" if is_bad else "the loss was finite, but its gradient"
        raise Failure(
            f"{what} was not finite in {self._skipped_in_a_row} steps in a row: lower optimizer.lr and run the same "
            "command again"
        )

    # State, whole on rank 0.

    def weights(self) -> dict[str, Tensor]:
        """The module's state dict in fp32 on the CPU of rank 0, {} on the others. Every rank must call it."""
        return {**self.fixed(), **self.gather(self.parts())}

    def moments(self) -> dict[str, Tensor]:
        """Adam's moments as ``exp_avg.NAME`` and ``exp_avg_sq.NAME``, fp32, and its ``step`` count, on the CPU of rank 0,
        {} on the others. Every rank must call it."""
        whole = {
            f"{moment}.{name}": values for moment in MOMENTS for name, values in self.gather(self.parts(moment)).items()
        }
        return {**whole, STEP: self._steps()[0].cpu().clone()} if whole else {}

    def load(self, weights: Mapping[str, Tensor], moments: Mapping[str, Tensor]) -> None:
        """Go on from whole ``weights`` and ``moments`` of any stage and number of ranks; without moments ({}) Adam begins
        anew. Every rank must call it with the same, between steps. Raises UserError where they are of another model."""
        with torch.no_grad():
            for name, buffer in self._buffers().items():
                buffer.copy_(_fitting(weights, name, buffer.shape))
            for name, parameter in self.module.named_parameters():
                value = _fitting(weights, name, self._shapes[name])
                with self._whole(parameter, is_written=True):
                    parameter.copy_(value)
        fill(self._held(), weights)
        for moment in MOMENTS:
            for _, values in self._held(moment).values():
                values.zero_()
            if moments:
                whole = {n: _fitting(moments, f"{moment}.{n}", self._shapes[n]) for n in self._trained()}
                fill(self._held(moment), whole)
        for step in self._steps():
            step.copy_(_fitting(moments, STEP, step.shape) if moments else torch.zeros(()))

    # Parts, for what is kept beside the weights.

    def parts(self, moment: str | None = None) -> dict[str, Part]:
        """This rank's parts of the trained weights, or of a moment of them, fp32; those of all ranks are the whole, once.
        The values are the engine's own and change with every step."""
        held = self._held(moment)
        if self._stage:
            return held
        owners = dealt({name: part.values.numel() for name, part in held.items()}, dist.get_world_size())
        return {name: part for name, part in held.items() if owners[name] == dist.get_rank()}

    def gather(self, parts: Mapping[str, Part]) -> dict[str, Tensor]:
        """Whole tensors of what lies as :meth:`parts` do, on the CPU of rank 0; {} on the others. Every rank must call
        it."""
        return gather(parts, {name: self._shapes[name] for name in self._trained()}, self.device)

    def fixed(self) -> dict[str, Tensor]:
        """Frozen parameters and buffers, fp32 on the CPU of rank 0; {} on the others. Every rank must call it."""
        is_first = dist.get_rank() == 0
        found = {name: buffer.detach().cpu().clone() for name, buffer in self._buffers().items() if is_first}
        for name, parameter in self.module.named_parameters():
            if not parameter.requires_grad:
                with self._whole(parameter):
                    if is_first:
                        found[name] = parameter.detach().float().cpu().clone()
        return found

    def _trained(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.module.named_parameters() if p.requires_grad}

    def _buffers(self) -> dict[str, Tensor]:
        """Those of the state dict."""
        saved = self.module.state_dict(keep_vars=True).keys()
        return {name: buffer for name, buffer in self.module.named_buffers() if name in saved}

    # Where DeepSpeed keeps things.

    def _whole(self, parameter: nn.Parameter, is_written: bool = False) -> Any:
        """A context in which ``parameter`` is whole also under stage 3; it keeps what rank 0 writes."""
        rank = 0 if is_written else None
        return deepspeed.zero.GatheredParameters(parameter, modifier_rank=rank, enabled=self._stage == 3)

    def _flat_weights(self) -> list[Tensor]:
        """What Adam updates: the parameters, or this rank's parts of them laid end to end."""
        optimizer = self._engine.optimizer
        if self._stage == 0:
            return list(self._trained().values())
        flat: list[Tensor] = (
            optimizer.fp32_partitioned_groups_flat if self._stage == 3 else optimizer.single_partition_of_fp32_groups
        )
        return flat

    def _steps(self) -> list[Tensor]:
        return [self._adam.state[weights][STEP] for weights in self._flat_weights()]

    def _held(self, moment: str | None = None) -> dict[str, Part]:
        """All that this rank has of the trained weights, or of a moment of them."""
        flat = [w.detach() if moment is None else self._adam.state[w][moment] for w in self._flat_weights()]
        if self._stage == 0:
            return {name: Part(0, values.view(-1)) for name, values in zip(self._trained(), flat, strict=True)}
        places = {name: self._place(parameter) for name, parameter in self._trained().items()}
        return {
            name: Part(place.start, flat[place.flat].narrow(0, place.first, place.length))
            for name, place in places.items()
            if place.length > 0
        }

    def _place(self, parameter: Any) -> _Place:
        if (
            self._stage == 3
        ):  # a parameter is cut into as many parts as there are ranks, of one length: the last are padded
            optimizer = self._engine.optimizer
            flat, first, length = optimizer.grad_position[optimizer.get_param_id(parameter)]
            start = length * dist.get_rank()
            return _Place(start, int(flat), int(first), min(int(length), parameter.ds_numel - start))
        mapping = (
            parameter._hp_mapping
        )  # a group is cut into as many parts as there are ranks, and this may be in another
        if mapping is None:
            return _Place(0, 0, 0, 0)
        there, here = mapping.lp_fragment_address, mapping.hp_fragment_address
        return _Place(there.start, mapping.param_group_index, here.start, here.numel)


class _Place(NamedTuple):
    """Where a rank has its part of a parameter."""

    start: int
    """In the flattened parameter."""
    flat: int
    """Which of the flat weights it is in."""
    first: int
    """In that."""
    length: int


def _fitting(tensors: Mapping[str, Tensor], name: str, shape: torch.Size) -> Tensor:
    if name not in tensors:
        raise UserError(f"the checkpoint has no {name}: it is of another model than the recipe's")
    if tensors[name].shape != shape:
        theirs, ours = tuple(tensors[name].shape), tuple(shape)
        raise UserError(f"{name} of the checkpoint is {theirs}, and {ours} in the recipe's model")
    return tensors[name]


def _quieten() -> None:
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+_tensor` is deprecated", FutureWarning)
    # On CPUs DeepSpeed would compile a shared-memory all-reduce at its first use, which takes a compiler and most of a
    # minute, and whose ranks wait for each other for ever when one died. gloo does the same work.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def _deepspeed_config(
    config: OptimizerConfig, zero: DeepSpeedConfig, stage: int, precision: str, trained: int
) -> dict[str, Any]:
    """DeepSpeed's settings; ``trained`` is how many numbers all trained parameters have."""
    on_gpu = torch.cuda.is_available()
    sharding: dict[str, Any] = {
        "stage": stage,
        # A buffer of so many numbers is made in every step; 5e8, whatever the model's size, by default.
        "reduce_bucket_size": min(trained, 2**27),
    }
    if not on_gpu and stage < 3:
        # Gradients are copied twice so that a GPU's memory stays in one piece. On a CPU that is for nothing, and takes 5%
        # of a step of the demo.
        sharding |= {"contiguous_gradients": False, "reduce_scatter": False}
    in_host = {"device": "cpu", "pin_memory": on_gpu}
    if zero.zero_stage == 3:  # its own linear layers add the bias in place to products that may be kept (execution.py)
        sharding["memory_efficient_linear"] = False
    if zero.offload != "none":
        sharding["offload_optimizer"] = in_host
    if zero.offload == "parameters":
        sharding["offload_param"] = in_host
    return {
        # A loss is already weighted, and a step is what lies between two updates.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": config.clip_norm if stage else 0.0,  # ClippedAdamW clips
        "zero_allow_untested_optimizer": True,
        # torch's fused AdamW is there on CPUs too; DeepSpeed's own must first be compiled.
        "zero_force_ds_cpu_optimizer": False,
        "torch_autocast": {
            "enabled": precision == "bf16",
            "dtype": "bfloat16",
            "lower_precision_safe_modules": [],  # those whose weights and gradients are sent in bf16
        },
        **zero.raw,
        "zero_optimization": {**sharding, **zero.raw.get("zero_optimization", {})},
    }


def _explain(error: ValidationError) -> str:
    """In a line, what DeepSpeed does not take of ``raw.zero_optimization``, the one part of its settings that it checks."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    where = f"deepspeed.raw.zero_optimization.{key}"
    if first["type"] == "extra_forbidden" and len(first["loc"]) == 1:
        known = [field.alias or name for name, field in DeepSpeedZeroConfig.model_fields.items()]
        return f"{where} is no key of DeepSpeed's; {near(key, known)}"
    return f"{where}: {first['msg']}"
