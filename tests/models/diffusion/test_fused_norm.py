"""Fused group normalisation: its values in Triton's interpreter, its code for two architectures, and where it is used."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from distil_cache.models.diffusion import fused_norm
from distil_cache.models.diffusion.blocks import GroupNorm32
from distil_cache.models.diffusion.fused_norm import FusedGroupNorm, fault_on, kind_of, use_fused_norms
from distil_cache.models.diffusion.unet import Adm
from distil_cache.pipeline.execution.networks import placed
from small_models import CONFIG

VALUES = Path(__file__).parents[2] / "support" / "fused_norm_values.py"
GPU = torch.device("cuda", 0)


@pytest.fixture(scope="module")
def interpreted() -> dict[str, Any]:
    """What the kernels compute in Triton's interpreter."""
    pytest.importorskip("triton")
    return dict(json.loads(subprocess.check_output([sys.executable, VALUES], text=True)))


def test_values_are_those_of_float64_up_to_one_rounding(interpreted: dict[str, Any]) -> None:
    errors: dict[str, float] = interpreted["errors"]
    halves = {"bfloat16": 2**-8, "float16": 2**-11}
    assert {name: error for name, error in errors.items() if error > halves.get(name, 5e-7)} == {}
    assert len(errors) == 11


def test_the_values_of_an_image_do_not_depend_on_its_batch(interpreted: dict[str, Any]) -> None:
    assert interpreted["rows_equal"]


def kernels(map_type: str) -> dict[str, tuple[dict[str, str], dict[str, Any]]]:
    """Kernel -> types of its arguments and its constants, for maps of 256 channels."""
    factors, moments = {"factors": "*fp32"}, {"found": "*fp32"}
    groups = {"GROUPS": 32, "WIDTH": 8, "PLACES": 8}
    return {
        "moments": ({"x": map_type, **moments, "positions": "i32", "chunk_rows": "i32"}, {**groups, "ROWS": 16}),
        "coefficients": (
            {
                **moments, "weight": "*fp32", "bias": "*fp32", "modulation": "*fp32", **factors,
                "positions": "i32", "chunks": "i32", "chunk_rows": "i32", "eps": "fp32",
            },
            {**groups, "MODULATED": True},
        ),
        "transform": (
            {"x": map_type, **factors, "y": map_type, "positions": "i32", "channels": "i32"},
            {"ACTIVATED": True, "COLUMNS": 256, "ROWS": 16},
        ),
    }  # fmt: skip


def test_the_kernels_compile_for_a_map_of_one_position_whose_numbers_are_constants_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    triton = pytest.importorskip("triton", minversion="3.4")
    from distil_cache.models.diffusion import norm_kernels
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    types, constants = kernels("*fp32")["coefficients"]
    constants |= {"positions": 1, "chunks": 1}
    source = ASTSource(norm_kernels.coefficients, {**types, **dict.fromkeys(constants, "constexpr")}, constants, {})
    assert triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]


@pytest.mark.parametrize("capability", [80, 90])
def test_the_kernels_compile_for_gpus_that_are_not_here_and_read_maps_16_bytes_at_a_time(
    capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    triton = pytest.importorskip("triton", minversion="3.4")
    from distil_cache.models.diffusion import norm_kernels
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for name, (types, constants) in kernels("*bf16").items():
        kernel = getattr(norm_kernels, name)
        multiples_of_16 = [kernel.arg_names.index(n) for n, kind in types.items() if kind[0] == "*" or n == "channels"]
        source = ASTSource(
            kernel,
            {**types, **dict.fromkeys(constants, "constexpr")},
            constants,
            {(place,): [["tt.divisibility", 16]] for place in multiples_of_16},
        )
        made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 8})
        assert len(made.asm["cubin"]) > 1000
        if name != "coefficients":
            assert made.asm["ptx"].count("ld.global.v4") >= 2


def test_fused_layers_take_the_place_of_all_others_with_the_same_parameters_and_compute_plainly_on_a_cpu() -> None:
    plain = Adm(CONFIG).eval()
    for parameter in plain.parameters():
        torch.nn.init.normal_(parameter, 0.1, 0.2)
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([0, 500])
    with torch.no_grad():
        before = plain(x, t)
        state = {name: value.data_ptr() for name, value in plain.state_dict().items()}
        use_fused_norms(plain)
        assert {name: value.data_ptr() for name, value in plain.state_dict().items()} == state
        assert torch.equal(plain(x, t), before)
    assert {type(layer) for layer in plain.modules() if isinstance(layer, GroupNorm32)} == {FusedGroupNorm}


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a trial for a GPU run on the CPU, with gradients off as they are in a build."""
    fault_on.cache_clear()
    for name in ("randn", "Generator"):
        real = getattr(torch, name)
        monkeypatch.setattr(
            torch,
            name,
            lambda *a, real=real, **k: real(
                *[x for x in a if x != GPU], **{**k, **({"device": "cpu"} if "device" in k else {})}
            ),
        )
    monkeypatch.setattr(GroupNorm32, "to", lambda self, *a, **k: self)
    monkeypatch.setattr(fused_norm, "serves", lambda x: True)


def plain_launch(
    kernels: object, x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor,
    modulation: torch.Tensor | None, eps: float, activated: bool,
) -> None:  # fmt: skip
    norm = GroupNorm32(x.shape[1])
    norm.weight, norm.bias = torch.nn.Parameter(weight), torch.nn.Parameter(bias)
    y.copy_(norm.activated(x, modulation) if activated else norm(x))


def test_kernels_are_tried_on_a_device_before_they_are_used(simulated: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_norm, "launch", plain_launch)
    assert fault_on(GPU) == ""
    fault_on.cache_clear()

    def wrong(*arguments: Any) -> None:
        plain_launch(*arguments)
        arguments[2].mul_(1.01)

    monkeypatch.setattr(fused_norm, "launch", wrong)
    assert "its values differ from the plain ones by" in fault_on(GPU)
    fault_on.cache_clear()

    def broken(*arguments: Any) -> None:
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC")

    monkeypatch.setattr(fused_norm, "launch", broken)
    assert fault_on(GPU) == "Triton: RuntimeError: Failed to find C compiler."
    fault_on.cache_clear()
    monkeypatch.setattr(fused_norm, "find_spec", lambda name: None)
    assert fault_on(GPU) == "Triton is not installed"
    fault_on.cache_clear()


def test_a_model_on_a_cpu_normalises_plainly() -> None:
    assert kind_of(placed(Adm(CONFIG).eval(), "fp32", torch.device("cpu"))) == "plain"
