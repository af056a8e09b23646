"""Infer guided-diffusion's flags from the shapes of a checkpoint's tensors, and recognise other networks.

Shapes decide the channels, their multipliers, the residual blocks, the levels that attend, the resampling, the class
embedding, and whether the variance and the scale-shift normalisation were learned. They do not tell how attention
splits its channels into heads (``num_heads`` or ``num_head_channels``, ``use_new_attention_order``). The network is
fully convolutional, so the image size follows only from multipliers that guided-diffusion has for one size alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .unet import DEFAULT_CHANNEL_MULT

ANCHOR = "time_embed.0.weight"
"""The key by which an ADM is recognised."""

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class InferredFlags:
    """What the shapes tell.

    Attributes
    ----------
    flags
        Flags and their values.
    attending
        Downsampling factors of the levels that attend.
    multipliers
        Channel multiplier of each level.
    """

    flags: dict[str, int | bool]
    attending: tuple[int, ...]
    multipliers: tuple[float, ...]

    def only_size(self) -> int | None:
        """Return the image size for which these are guided-diffusion's multipliers; None if there is none."""
        return next((size for size, found in DEFAULT_CHANNEL_MULT.items() if found == self.multipliers), None)

    def at_size(self, image_size: int | None) -> dict[str, str | int | bool]:
        """Return all flags for an image size, or those that do not depend on it.

        The default multipliers of a size are left empty, as in guided-diffusion's scripts.
        """
        explicit = ",".join(f"{multiplier:g}" for multiplier in self.multipliers)
        if image_size is None:
            return {**self.flags, "channel_mult": explicit}
        default = DEFAULT_CHANNEL_MULT.get(image_size) == self.multipliers
        return {
            "image_size": image_size,
            **self.flags,
            "channel_mult": "" if default else explicit,
            "attention_resolutions": ",".join(str(image_size // factor) for factor in self.attending),
        }


def infer_flags(shapes: Shapes) -> InferredFlags | None:
    """Infer flags from the shapes of an ADM's tensors by name; None if they are not built like an ADM."""
    try:
        return _inferred(shapes)
    except (KeyError, IndexError, ZeroDivisionError):
        return None


def _inferred(shapes: Shapes) -> InferredFlags | None:
    channels = shapes[ANCHOR][1]
    blocks = _count(shapes, "input_blocks")
    ups = [
        (number, name)
        for number in range(_count(shapes, "output_blocks"))
        for name in ("in_layers.2.weight", "conv.weight")
        for place in (1, 2)
        if f"output_blocks.{number}.{place}.{name}" in shapes
    ]
    levels = 1 + len(ups)
    if blocks % levels or _count(shapes, "output_blocks") != blocks or blocks // levels < 2:
        return None
    res_blocks = blocks // levels - 1
    firsts = [1 + level * (res_blocks + 1) for level in range(levels)]
    widths = [shapes[f"input_blocks.{first}.0.in_layers.2.weight"][0] for first in firsts]
    embedded = shapes["input_blocks.1.0.emb_layers.1.weight"][0]
    flags = {
        "num_channels": channels,
        "num_res_blocks": res_blocks,
        "class_cond": "label_emb.weight" in shapes,
        "use_scale_shift_norm": embedded == 2 * widths[0],
        "resblock_updown": any(name == "in_layers.2.weight" for _, name in ups),
        "learn_sigma": shapes["out.2.weight"][0] == 6,
    }
    attending = tuple(2**level for level in range(levels) if _attends(shapes, firsts[level]))
    return InferredFlags(flags, attending, tuple(width / channels for width in widths))


def _attends(shapes: Shapes, block: int) -> bool:
    return f"input_blocks.{block}.1.qkv.weight" in shapes


def _count(shapes: Shapes, half: str) -> int:
    return len({name.split(".")[1] for name in shapes if name.startswith(f"{half}.")})


def why_another_network(names: Mapping[str, object], shapes: Shapes) -> str | None:
    """Return what a file holds in place of an ADM, as the end of a sentence; None if it may be an ADM.

    Parameters
    ----------
    names
        Top-level entries, and keys of the state dict if there is one.
    shapes
        Shapes of the tensors that were taken for the ADM's; empty if none were.
    """
    if any(".attn2." in name or name.startswith(("cond_stage_model.", "conditioner.")) for name in names):
        return (
            "is a Stable Diffusion checkpoint: its network sees latents and a text, not pixels. "
            "Use an ADM of guided-diffusion, such as adm256"
        )
    if any("first_stage_model." in name for name in names):
        return (
            "is a latent diffusion model: its network sees the latents of an autoencoder, not pixels. "
            "Use an ADM of guided-diffusion, such as adm256"
        )
    if any("down_blocks." in name or "time_embedding.linear_1" in name for name in names):
        return (
            "is a network of the library diffusers, with other layers and keys. "
            "Use a checkpoint of guided-diffusion, such as adm256"
        )
    if any("temb.dense." in name for name in names):
        return "is a UNet of DDPM or DDIM, a network other than guided-diffusion's. Use an ADM, such as adm256"
    if not shapes:
        return None
    if any(".attn2." in name or ".transformer_blocks." in name for name in shapes):
        return "is the UNet of a text-to-image model such as Stable Diffusion. Use an ADM, such as adm256"
    if not any(name.startswith("output_blocks.") for name in shapes):
        return "is the classifier of guided-diffusion, not its diffusion model. Use an ADM, such as adm256"
    return _why_channels(shapes.get("input_blocks.0.0.weight", ()))


def _why_channels(stem: tuple[int, ...]) -> str | None:
    channels = stem[1] if len(stem) == 4 else 3
    if channels == 6:
        return "is an upsampler of guided-diffusion: it also needs a small image. Use a plain ADM, such as adm256"
    if channels != 3:
        return f"takes inputs of {channels} channels, not RGB images. Use an ADM for RGB images, such as adm256"
    return None
