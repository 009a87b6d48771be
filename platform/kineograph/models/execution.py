"""How a model's blocks are run in training: what of them is kept for the backward pass, and whether they are compiled.

Neither changes what is computed, nor the names of modules, parameters and the state dict: each block's ``forward`` is
replaced, and no module is wrapped.

Sources: Chen et al. 2016, Training Deep Nets with Sublinear Memory Cost (recomputation of blocks); Korthikanti et al. 2022,
Reducing Activation Recomputation in Large Transformer Models (selective recomputation).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import MethodType
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from kineograph.config import Config
from kineograph.errors import UserError
from kineograph.models.dit import DiTBlock
from kineograph.models.measure import note_kept
from kineograph.models.stdit import STDiTBlock
from kineograph.models.vit import EncoderBlock
from kineograph.progress import say

BLOCKS = (STDiTBlock, DiTBlock, EncoderBlock)
Recompute = Literal["none", "selective", "block"]
Forward = Callable[..., Any]


class ExecutionConfig(Config):
    """What training trades for memory, and what it takes to be quick."""

    recompute: Recompute = "none"
    """What is computed again in the backward pass instead of being kept. none: nothing. selective: all of a block but its
    matrix products and attention. block: whole blocks, a forward pass more: about a third of a training step.

    A block of STDiT's joined layout keeps of each token, in units of its width, about 45 values with none, 19 with
    selective (its input, and what comes out of 10 linear layers and 3 attentions) and 1 with block (its input); in bf16,
    where much stays fp32, about 130, 41 and 4 bytes."""
    recompute_every: int = Field(1, ge=1)
    """Only every so many blocks are computed again, the first among them; the others keep everything."""
    compile: bool = False
    """Whether blocks are compiled (torch.compile), which joins their small operations. It takes a minute or so at the
    first step, and again for single frames and for single clips; other shapes share what is compiled. Where it fails, that
    is said and the blocks run as they are. Results differ by rounding."""
    compile_limit: int = Field(32, ge=1)
    """Graphs that are compiled of blocks of a kind, at most: what needs more runs uncompiled."""


def prepare(model: nn.Module, config: ExecutionConfig, backend: str = "inductor") -> None:
    """Let the blocks of ``model`` run as ``config`` says, also if they ran otherwise before. Adapters (lora.py) come first.

    ``model`` is, or has within, an STDiT, DiT, ViT or ViViT, or an autoencoder of diffusers, whose blocks can be recomputed
    where its class says so. ``backend`` is what torch compiles with: aot_eager makes graphs and no machine code.

    Raises UserError for an autoencoder that cannot run so.
    """
    if config.compile:
        _allow_graphs(config.compile_limit)
    blocks = [module for module in model.modules() if isinstance(module, BLOCKS)]
    for index, block in enumerate(blocks):
        kind: Any = type(block)
        recompute = config.recompute if index % config.recompute_every == 0 else "none"
        forward = _forward(kind, recompute, _draws(block), backend if config.compile else None)
        # On the instance, which is where nn.Module looks first; a bound method goes along when the model is copied.
        block.__dict__.pop("forward", None)
        if forward is not kind.forward:
            block.__dict__["forward"] = MethodType(forward, block)
    if not blocks:
        _prepare_autoencoder(model, config)


def recompute_factor(config: ExecutionConfig) -> float:
    """Operations that training does over those that it needs, the hardware's over the model's FLOPs: with whole blocks a
    forward pass more beside the three that a training step comes to. What is outside of blocks, below 1%, counts in."""
    return 1 + 1 / (3 * config.recompute_every) if config.recompute == "block" else 1.0


@functools.cache
def _forward(kind: type[nn.Module], recompute: Recompute, draws: bool, backend: str | None) -> Forward:
    """``forward`` of a kind of block. Equal blocks share one function, and with it what is compiled."""
    forward: Forward = kind.forward
    if recompute != "none":
        forward = _recomputed(forward, recompute, draws)
    return forward if backend is None else _compiled(forward, kind.__name__, backend)


def _recomputed(forward: Forward, recompute: Recompute, draws: bool) -> Forward:
    contexts: dict[str, Any] = {"context_fn": selective_contexts} if recompute == "selective" else {}

    def run(block: nn.Module, *args: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(block, *args)
        if not torch.compiler.is_compiling():
            torch.clear_autocast_cache()  # else a second pass in one autocast finds weights cast that the backward casts
            if contexts:
                _check_linear()
        return checkpoint(forward, block, *args, use_reentrant=False, preserve_rng_state=draws, **contexts)

    return run


def _draws(module: nn.Module) -> bool:
    """Whether a module draws random numbers in training, which must be the same when it is computed again."""
    return any(isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0 for m in module.modules())


# Selective recomputation.

_KEPT = (
    "aten.mm",
    "aten.addmm",
    "aten.convolution",
    "aten._scaled_dot_product_flash_attention",
    "aten._scaled_dot_product_flash_attention_for_cpu",
    "aten._scaled_dot_product_efficient_attention",
    "aten._scaled_dot_product_cudnn_attention",
    "aten._scaled_dot_product_fused_attention_overrideable",
    "torch_attn._varlen_attn",
)


@functools.cache
def _kept_operations() -> frozenset[Any]:
    """Those of _KEPT that this torch has."""
    found = [(getattr(torch.ops, space), name) for space, name in (k.split(".") for k in _KEPT)]
    return frozenset(getattr(namespace, name).default for namespace, name in found if hasattr(namespace, name))


def _check_linear() -> None:
    """Raise UserError where linear layers are not torch's. DeepSpeed's add the bias in place, to products that are kept: in
    the backward pass it would be added twice, and gradients would be wrong with nobody told."""
    if F.linear is not torch._C._nn.linear:
        raise UserError(
            "selective recomputation goes with torch's linear layers alone: set execution.recompute=block, or "
            "deepspeed.raw.zero_optimization.memory_efficient_linear=false"
        )


def _policy(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    if operation not in _kept_operations():
        return CheckpointPolicy.PREFER_RECOMPUTE
    note_kept(getattr(context, "op_output", None))  # from torch 2.13
    return CheckpointPolicy.MUST_SAVE


def selective_contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """For :func:`torch.utils.checkpoint.checkpoint`: outputs of linear layers, convolutions and attention are kept."""
    contexts: tuple[AbstractContextManager[Any], AbstractContextManager[Any]] = create_selective_checkpoint_contexts(
        _policy
    )
    return contexts


# Compilation.


def _allow_graphs(limit: int) -> None:
    import torch._dynamo
    import torch.fx.experimental._config as shapes

    # Sizes that happen to be equal, such as clips and frames, would be taken to be equal always, and cost another graph.
    shapes.use_duck_shape = False
    torch._dynamo.config.recompile_limit = limit


def _compiled(forward: Forward, name: str, backend: str) -> Forward:
    """``forward`` compiled for any sizes. Whether the first bucket of a run or another comes first, the graph is the
    same."""
    from torch._dynamo.exc import TorchDynamoException

    compiled = torch.compile(forward, dynamic=True, backend=backend)
    has_failed = False

    def run(block: nn.Module, *args: Any) -> Any:
        nonlocal has_failed
        if not has_failed:
            try:
                return compiled(block, *args)
            except TorchDynamoException as error:
                has_failed = True
                say(f"{name} runs uncompiled, it cannot be compiled here: {' '.join(str(error).split())[:200]}")
        return forward(block, *args)

    return run


# Autoencoders.


def _prepare_autoencoder(model: nn.Module, config: ExecutionConfig) -> None:
    if config.compile:
        raise UserError("only transformers can be compiled: set execution.compile=false")
    if config.recompute == "none":
        return
    from kineograph.models.vae.architectures import CACHED_CLASSES

    found: list[Any] = [module for module in model.modules() if hasattr(module, "enable_gradient_checkpointing")]
    name = type(found[0]).__name__ if found else type(model).__name__
    # Convolutions that remember frames would remember them once more.
    if not found or name in CACHED_CLASSES or config.recompute_every > 1:
        raise UserError(f"{name} cannot be computed again block by block: set execution.recompute=none")
    contexts: dict[str, Any] = {"context_fn": selective_contexts} if config.recompute == "selective" else {}
    for module in found:
        run = functools.partial(checkpoint, use_reentrant=False, preserve_rng_state=_draws(module), **contexts)
        module.enable_gradient_checkpointing(run)
