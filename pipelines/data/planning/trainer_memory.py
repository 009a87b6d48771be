"""How many clips of a bucket fit one GPU in a training step of an STDiT: an estimate, from counted tensors."""

from __future__ import annotations

from pydantic import Field

from kineograph.config import Config
from kineograph.models.memory import STATE_BYTES

KEPT_WIDTHS = 37
"""Values that a block of kineograph.models.stdit keeps of a token for its backward pass, in units of the width, besides
the MLP's hidden layer, which is kept before and after its GELU. Counted as saved tensors on the CPU, where attention
keeps no matrix of weights, as in FlashAttention (Dao et al. 2022)."""
KEPT_TEXT_WIDTHS = 4
"""The same of a text token: keys and values of a block's attention to the text."""
PARAMETER_WIDTHS = 16
"""Square matrices of width² outside the blocks: embeddings of timestep, rate, size and text, modulation, output."""


class TrainerModel(Config):
    """The model that is to be trained; the defaults are Open-Sora's STDiT-XL/2 (Zheng et al. 2024)."""

    width: int = Field(1152, ge=1)
    """Channels of a token."""
    depth: int = Field(28, ge=1)
    """Blocks."""
    mlp_ratio: float = Field(4.0, gt=0)
    """Hidden width of the MLP over width."""
    text_tokens: int = Field(120, ge=0)
    """Tokens of a caption; 120 is Open-Sora's."""
    checkpointing: bool = False
    """Whether only the inputs of the blocks are kept, and each block is run again in the backward pass (Chen et al.
    2016)."""
    activation_bytes: int = Field(2, ge=1)
    """Bytes of a kept value; 2 is bf16."""
    usable: float = Field(0.9, gt=0, le=1)
    """Share of the memory that tensors may take; the rest is for the context, workspaces and fragments."""

    @property
    def parameters(self) -> int:
        """About how many: per block three attentions of 4·width², the MLP and the modulation, and what is outside."""
        per_block = 12 + 2 * self.mlp_ratio
        return round((self.depth * per_block + PARAMETER_WIDTHS) * self.width**2)

    @property
    def state_bytes(self) -> int:
        """Weights, gradients and the optimizer's state, not sharded."""
        return self.parameters * STATE_BYTES

    def clip_bytes(self, tokens: int) -> int:
        """Activations of one clip of ``tokens`` at the end of the forward pass."""
        block = tokens * (KEPT_WIDTHS + 2 * self.mlp_ratio) + self.text_tokens * KEPT_TEXT_WIDTHS
        kept = self.depth * tokens + block if self.checkpointing else self.depth * block
        return round(kept * self.width * self.activation_bytes)

    def batch(self, tokens: int, memory_bytes: int) -> int:
        """Clips of ``tokens`` that fit ``memory_bytes`` beside the model; 0 when none does."""
        return max(0, int((memory_bytes * self.usable - self.state_bytes) // self.clip_bytes(tokens)))
