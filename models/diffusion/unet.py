"""The UNet of OpenAI's guided-diffusion ("ADM", Dhariwal & Nichol 2021), with the official keys and shapes.

The network predicts the noise of an image in [-1, 1] at one of the original timesteps (0..999). It is differentiable,
so small ones can be trained; nothing here depends on training.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Self, cast

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor, nn

from ...errors import UserError
from ..class_label import NUM_CLASSES
from .blocks import (
    GROUPS,
    AttentionBlock,
    Downsample,
    EmbeddedSequential,
    GroupNorm32,
    ResBlock,
    Upsample,
    timestep_embedding,
    zero_init,
)
from .noise_schedule import NoiseSchedule, respace

#: Channel multipliers of an empty ``channel_mult``, by image size.
DEFAULT_CHANNEL_MULT = {
    512: (0.5, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0),
    256: (1.0, 1.0, 2.0, 2.0, 4.0, 4.0),
    128: (1.0, 1.0, 2.0, 3.0, 4.0),
    64: (1.0, 2.0, 3.0, 4.0),
}

#: Flags that change neither the network nor what it computes here.
IGNORED_FLAGS = frozenset(
    {"use_checkpoint", "use_fp16", "fp16_scale_growth", "timestep_respacing", "rescale_learned_sigmas"}
)

#: Flags that, if set, mean a model or process that is not implemented here.
UNSUPPORTED_FLAGS = {
    "use_kl": "a model trained on the variational bound",
    "predict_xstart": "a network that predicts the clean image",
    "rescale_timesteps": "timesteps rescaled to 0..1000",
}


ON = frozenset({"yes", "true", "t", "y", "1"})
OFF = frozenset({"no", "false", "f", "n", "0"})
"""Words for a switch on guided-diffusion's command line, in any case."""


class AdmConfig(BaseModel):
    """Everything that determines the network's shape and values: guided-diffusion's flags, with its names and defaults.

    Attributes
    ----------
    attention_resolutions
        Feature map sizes in pixels at which the network attends, separated by commas.
    channel_mult
        Multiples of ``num_channels`` at each level, separated by commas; empty for the official ones of the image size.
    num_head_channels
        Channels per attention head; -1 for ``num_heads`` heads everywhere.
    num_heads_upsample
        Heads in the upsampling half; -1 for ``num_heads``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_size: int = Field(default=64, ge=8)
    num_channels: int = Field(default=128, ge=GROUPS)
    num_res_blocks: int = Field(default=2, ge=1, le=1000)
    channel_mult: str = ""
    num_heads: int = Field(default=4, ge=1)
    num_heads_upsample: int = Field(default=-1, ge=-1)
    num_head_channels: int = Field(default=-1, ge=-1)
    attention_resolutions: str = "16,8"
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    class_cond: bool = False
    use_scale_shift_norm: bool = True
    resblock_updown: bool = False
    use_new_attention_order: bool = False
    learn_sigma: bool = False
    diffusion_steps: int = Field(default=1000, ge=1)
    noise_schedule: Literal["linear", "cosine"] = "linear"

    @classmethod
    def from_flags(cls, flags: Mapping[str, object]) -> AdmConfig:
        """Parse guided-diffusion flags. Text is read as on its command line: ``"False"`` is off, ``"256"`` a number.

        Raises
        ------
        UserError
            A flag is unknown, invalid or not supported; the message names it.
        """
        for name, meaning in UNSUPPORTED_FLAGS.items():
            if name in flags and _read_switch(name, flags[name]):
                raise UserError(
                    f"ADM flag {name}={flags[name]}: {meaning} is not supported; use a checkpoint trained without it."
                )
        kept = {
            name: _read_flag(name, value)
            for name, value in flags.items()
            if name not in IGNORED_FLAGS and name not in UNSUPPORTED_FLAGS and value is not None
        }
        try:
            return cls.model_validate(kept)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"]) or "flags"
            raise UserError(
                f"ADM flag {name}: {first['msg']}. Correct the JSON that describes the checkpoint."
            ) from None

    def schedule(self, steps: str) -> NoiseSchedule:
        """Return the model's schedule respaced to ``steps``, see :func:`.noise_schedule.respace`."""
        return respace(steps, noise_schedule=self.noise_schedule, steps=self.diffusion_steps)

    def multipliers(self) -> tuple[float, ...]:
        """Return the channel multiplier of each level, finest first."""
        if self.channel_mult:
            return tuple(float(part) for part in self.channel_mult.split(","))
        return DEFAULT_CHANNEL_MULT[self.image_size]

    def level_channels(self) -> tuple[int, ...]:
        """Return the channels of each level, finest first."""
        return tuple(int(mult * self.num_channels) for mult in self.multipliers())

    def attention_factors(self) -> frozenset[int]:
        """Return the downsampling factors of the levels that attend."""
        sizes = [int(part) for part in self.attention_resolutions.split(",") if part.strip()]
        return frozenset(self.image_size // size for size in sizes)

    def largest_map(self, side: int) -> int:
        """Return how many values the largest feature map of an image of ``side`` pixels has.

        Candidates are, at each level, queries, keys and values of attention, the maps that a block of the upsampling
        half joins with those of the other half, and the upsampled map.
        """
        channels = self.level_channels()
        last, attend = len(channels) - 1, self.attention_factors()
        largest = 0
        for level, own in enumerate(channels):
            joined = [channels[min(level + 1, last)] + own, own + channels[max(level - 1, 0)]]
            if self.num_res_blocks > 1:
                joined.append(2 * own)
            attends = 2**level in attend or level == last
            widest = max(*joined, 3 * own if attends else 0)
            largest = max(largest, widest * (side >> level) ** 2, own * (side >> max(level - 1, 0)) ** 2)
        return largest

    def heads(self) -> tuple[int, int]:
        """Return the attention heads of both halves, down and up, where ``num_head_channels`` does not decide."""
        return self.num_heads, self.num_heads if self.num_heads_upsample == -1 else self.num_heads_upsample

    def out_channels(self) -> int:
        """Return 3, or 6 if the network also predicts the variance."""
        return 6 if self.learn_sigma else 3

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if not self.channel_mult and self.image_size not in DEFAULT_CHANNEL_MULT:
            raise ValueError(f"channel_mult must be given for image_size {self.image_size}")
        try:
            channels = self.level_channels()
            self.attention_factors()
        except (ValueError, ZeroDivisionError):
            raise ValueError("channel_mult and attention_resolutions are numbers separated by commas") from None
        if any(c < GROUPS or c % GROUPS for c in channels):
            raise ValueError(f"channels {channels} (num_channels x channel_mult) must be multiples of {GROUPS}")
        if self.image_size % 2 ** (len(channels) - 1):
            raise ValueError(f"image_size {self.image_size} cannot be halved {len(channels) - 1} times (channel_mult)")
        if self.num_head_channels != -1 and any(c % self.num_head_channels for c in channels):
            raise ValueError(f"num_head_channels {self.num_head_channels} does not divide the channels {channels}")
        if self.num_head_channels == -1 and any(c % heads for c in channels for heads in self.heads()):
            raise ValueError(f"num_heads (or num_heads_upsample) does not divide the channels {channels}")
        return self


def is_flag(name: str) -> bool:
    """Return whether guided-diffusion's models have a flag of this name."""
    return name in AdmConfig.model_fields or name in UNSUPPORTED_FLAGS or name in IGNORED_FLAGS


def _read_flag(name: str, value: object) -> object:
    """Return a flag's value for validation: switches from text, lists of numbers as text."""
    field = AdmConfig.model_fields.get(name)
    if field is None:
        return value
    if field.annotation is bool:
        return _read_switch(name, value)
    if field.annotation is str and isinstance(value, list | tuple):
        return ",".join(f"{part:g}" if isinstance(part, int | float) else str(part) for part in value)
    return str(value) if field.annotation is str and isinstance(value, int | float) else value


def _read_switch(name: str, value: object) -> bool:
    """Return a switch as guided-diffusion's command line reads it."""
    word = str(value).strip().lower()
    if word in ON or word in OFF or value is None:
        return word in ON
    raise UserError(
        f"ADM flag {name}={value}: is neither true nor false. Correct the JSON that describes the checkpoint."
    )


class Adm(nn.Module):
    """The noise model. Build it, then load an official ``state_dict`` strictly."""

    def __init__(self, config: AdmConfig) -> None:
        super().__init__()
        self.config = config
        self.torso_dtype = torch.float32
        width = 4 * config.num_channels
        self.time_embed = nn.Sequential(nn.Linear(config.num_channels, width), nn.SiLU(), nn.Linear(width, width))
        if config.class_cond:
            self.label_emb = nn.Embedding(NUM_CLASSES, width)

        levels = config.level_channels()
        attend = config.attention_factors()
        heads_down, heads_up = config.heads()
        last = len(levels) - 1

        channels = levels[0]
        skips = [channels]
        self.input_blocks = nn.ModuleList([EmbeddedSequential(nn.Conv2d(3, channels, 3, padding=1))])
        for level, out in enumerate(levels):
            for _ in range(config.num_res_blocks):
                block: list[nn.Module] = [self._res(channels, out)]
                channels = out
                if 2**level in attend:
                    block.append(self._attention(channels, heads_down))
                self.input_blocks.append(EmbeddedSequential(*block))
                skips.append(channels)
            if level < last:
                down = self._res(channels, channels, "down") if config.resblock_updown else Downsample(channels)
                self.input_blocks.append(EmbeddedSequential(down))
                skips.append(channels)

        self.middle_block = EmbeddedSequential(
            self._res(channels, channels), self._attention(channels, heads_down), self._res(channels, channels)
        )

        self.output_blocks = nn.ModuleList()
        for level, out in reversed(list(enumerate(levels))):
            for index in range(config.num_res_blocks + 1):
                block = [self._res(channels + skips.pop(), out)]
                channels = out
                if 2**level in attend:
                    block.append(self._attention(channels, heads_up))
                if level and index == config.num_res_blocks:
                    block.append(self._res(out, out, "up") if config.resblock_updown else Upsample(out))
                self.output_blocks.append(EmbeddedSequential(*block))

        self.out = nn.Sequential(
            GroupNorm32(channels), nn.SiLU(), zero_init(nn.Conv2d(channels, config.out_channels(), 3, padding=1))
        )

    def _res(self, channels: int, out: int, resample: str = "none") -> ResBlock:
        c = self.config
        return ResBlock(
            channels,
            out,
            4 * c.num_channels,
            dropout=c.dropout,
            scale_shift=c.use_scale_shift_norm,
            resample=resample,
        )

    def _attention(self, channels: int, heads: int) -> AttentionBlock:
        c = self.config
        if c.num_head_channels != -1:
            heads = channels // c.num_head_channels
        return AttentionBlock(channels, heads, new_order=c.use_new_attention_order)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Predict the noise in x at timesteps t.

        Parameters
        ----------
        x : Tensor, shape (B, 3, H, W)
            float32 in about [-1, 1].
        t : Tensor, shape (B,)
            Original timesteps, integer.
        y : Tensor, shape (B,)
            Class indices, for a class-conditional model.

        Returns
        -------
        Tensor, shape (B, 3, H, W) or (B, 6, H, W)
            The noise, float32; with ``learn_sigma``, the variance is in channels 3..5.

        Raises
        ------
        UserError
            A class-conditional model gets no classes, or an unconditional one gets some.
        """
        if self.config.class_cond and y is None:
            raise UserError(
                "This ADM is class-conditional: pass a class for every image, or use an unconditional checkpoint."
            )
        if not self.config.class_cond and y is not None:
            raise UserError("This ADM is unconditional: it takes no classes.")
        emb = self.time_embed(timestep_embedding(t, self.config.num_channels))
        if y is not None:
            emb = emb + self.label_emb(y)
        h = x.to(self.torso_dtype)
        skips = []
        for block in self.input_blocks:
            h = block(h, emb)
            skips.append(h)
        h = self.middle_block(h, emb)
        for block in self.output_blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), emb)
        norm, _, conv = cast(tuple[GroupNorm32, nn.SiLU, nn.Conv2d], self.out)
        result: Tensor = conv(norm.activated(h.float()))
        return result

    def to_half(self, dtype: torch.dtype) -> Self:
        """Run the torso's convolutions in float16 or bfloat16; normalisation, time embedding and head stay float32."""
        torso: list[nn.Module] = [self.input_blocks, self.middle_block, self.output_blocks]
        for blocks in torso:
            for module in blocks.modules():
                if isinstance(module, (nn.Conv1d, nn.Conv2d)):
                    module.to(dtype)
        self.torso_dtype = dtype
        return self

    def parameter_count(self) -> int:
        """Return the number of parameters."""
        return sum(p.numel() for p in self.parameters())
