"""Compare this program with the golden vectors in the reference's own arithmetic, and print the differences as JSON.

    ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 python golden_arithmetic.py STEM...

The golden networks are random, not denoisers: over 40 steps they amplify rounding a hundredfold, so that other CPU kernels
(AVX-512, one thread instead of two, another order of attention's products) move the reconstruction by up to 1e-4. Here the
kernels are as near to those that made the vectors as the CPU allows (MKL's still differ from CPU to CPU), and attention is
spelled out in the order of the reference. What is left are differences of the program, and the rounding of one call.
This runs as a process of its own, because the kernels are chosen when torch is imported.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import torch
from distil_cache.models.diffusion.blocks import AttentionBlock
from distil_cache.models.diffusion.ddim import dire_image, invert, predict, sample, to_uint8
from distil_cache.models.diffusion.noise_schedule import respace
from distil_cache.models.diffusion.unet import Adm, AdmConfig
from safetensors.torch import load_file
from torch import Tensor

RUNS = [(real_step, clip) for real_step in (0, 10) for clip in (True, False)]


class Recorder:
    """A noise model that remembers the states it was asked about and the noise it answered."""

    def __init__(self, model: Adm) -> None:
        self.model = model
        self.states: list[Tensor] = []
        self.noises: list[Tensor] = []

    def __call__(self, x: Tensor, t: Tensor, /) -> Tensor:
        """Predict and remember."""
        answer: Tensor = self.model(x, t)
        self.states.append(x)
        self.noises.append(answer[:, :3])
        return answer


def spelled_out_attention(block: AttentionBlock, x: Tensor) -> Tensor:
    """What an attention block computes of x (B, C, H, W), in the order of operations of the reference.

    Convolutions with one tap, positions innermost, both factors scaled before their product; no fused kernel.
    """
    batch, channels, height, width = x.shape
    tokens = x.reshape(batch, channels, height * width)
    qkv = block.qkv(block.norm(tokens))
    if block.new_order:
        qkv = qkv.reshape(batch, 3, block.heads, -1, height * width).transpose(1, 2)
    qkv = qkv.reshape(batch, block.heads, 3, -1, height * width)
    q, k, v = (part.contiguous() for part in qkv.unbind(2))
    scale = 1.0 / math.sqrt(math.sqrt(q.shape[2]))
    weights = torch.einsum("bhct,bhcs->bhts", q * scale, k * scale).softmax(dim=-1)
    attended = torch.einsum("bhts,bhcs->bhct", weights, v).reshape(batch, channels, height * width)
    return (tokens + block.proj_out(attended)).reshape(batch, channels, height, width)


def load_golden_adm(stem: Path) -> Adm:
    """The network of a golden variant: float16 on disk, used as float32."""
    flags = json.loads(stem.with_suffix(".json").read_text())["flags"]
    model = Adm(AdmConfig.from_flags(flags)).eval().requires_grad_(False)
    model.load_state_dict({k: v.float() for k, v in load_file(f"{stem}.weights.safetensors").items()})
    return model


def results(model: Adm, x: Tensor) -> dict[str, Tensor]:
    """Everything that the golden file of a variant holds, computed here, under the same names."""
    schedule = respace("ddim20")
    made: dict[str, Tensor] = {}
    for t in (0, 50, 500, 950):
        made[f"raw_t{t}"] = model(x, torch.full((len(x),), t))
    made["raw_tmixed"] = model(x, torch.tensor([0, 50, 500, 950]))
    for real_step, clip in RUNS:
        name = f"rs{real_step}_clip{int(clip)}"
        seen = Recorder(model)
        inversion = invert(seen, x, schedule, clip=clip, real_step=real_step)
        recon = sample(model, inversion.latent, schedule, clip=clip, real_step=real_step)
        made[f"eps0_clip{int(clip)}"] = inversion.eps
        made[f"latent_{name}"], made[f"recon_{name}"] = inversion.latent, recon
        made[f"dire_f32_{name}"], made[f"dire_u8_{name}"] = dire_image(x, recon), to_uint8(dire_image(x, recon))
        made[f"dnf_mean_eps_{name}"] = inversion.mean_eps
        made[f"dnf_mean_raw_{name}"] = torch.stack(seen.noises).mean(0)
        if real_step == 0 and clip:
            steps = list(schedule.ascending())
            for i in (1, 5, 10, 19):
                made[f"inv_state{i}_clip1"] = seen.states[i]
                made[f"inv_eps{i}_clip1"] = predict(model, seen.states[i], steps[i]).eps
    return made


def difference(ours: Tensor, theirs: Tensor) -> dict[str, float]:
    """Relative difference of the norms, largest absolute difference, and the share of values that differ."""
    a, b = ours.double(), theirs.double()
    return {
        "relative": float((a - b).norm() / b.norm()),
        "largest": float((a - b).abs().max()),
        "changed": float((a != b).double().mean()),
    }


def compare(stem: Path) -> dict[str, dict[str, float]]:
    """Differences of every golden array of a variant, by its name."""
    golden = load_file(f"{stem}.golden.safetensors")
    with torch.inference_mode():
        made = results(load_golden_adm(stem), golden["x"])
    return {name: difference(made[name], value) for name, value in golden.items() if name != "x"}


if __name__ == "__main__":
    torch.set_num_threads(2)
    AttentionBlock.forward = spelled_out_attention  # type: ignore[method-assign]
    print(json.dumps({stem: compare(Path(stem)) for stem in sys.argv[1:]}))
