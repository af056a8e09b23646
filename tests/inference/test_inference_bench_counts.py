"""Counted costs: FLOPs, parameters and ADM calls, without running a network or drawing weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from distil_cache.choices import BENCH_METHODS, STEPS
from distil_cache.features.contract import Single
from distil_cache.inference.bench.flops import FlopCounter, count_flops
from distil_cache.inference.bench.method_runner import MethodPlan, MethodRunner, noise_images
from distil_cache.inference.bench.run import BenchConfig, run_bench
from distil_cache.inference.bench.timing import PassTimer
from distil_cache.models.diffusion.blocks import AttentionBlock, ResBlock
from distil_cache.models.diffusion.checkpoints import OFFICIAL
from distil_cache.models.diffusion.unet import Adm
from distil_cache.train.methods.registry import METHODS
from small_models import CONFIG, SIDE
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import resnet50


def on_meta(make: Any, *shapes: tuple[int, ...]) -> int:
    with torch.device("meta"):
        return count_flops(make(), *(torch.zeros(shape) for shape in shapes))


def test_a_convolution_costs_two_operations_per_weight_and_position() -> None:
    positions = 10 * 12
    assert on_meta(lambda: nn.Conv2d(3, 8, 3, padding=1), (1, 3, 10, 12)) == 2 * 8 * 3 * 3 * 3 * positions
    assert on_meta(lambda: nn.Conv2d(4, 8, 1, stride=2), (2, 4, 10, 12)) == 2 * 2 * 8 * 4 * positions // 4
    assert on_meta(lambda: nn.Linear(5, 7), (3, 5)) == 2 * 3 * 5 * 7


def test_attention_counts_its_two_products_besides_its_projections() -> None:
    channels, tokens = 32, 6 * 6
    projections = 2 * (3 + 1) * channels * channels * tokens
    products = 2 * 2 * channels * tokens * tokens
    found = on_meta(lambda: AttentionBlock(channels, 2, new_order=False), (1, channels, 6, 6))
    assert found == projections + products


def test_counting_without_memory_agrees_with_counting_a_real_run() -> None:
    x, t = torch.zeros(1, 3, SIDE, SIDE), torch.zeros(1, dtype=torch.int64)
    real = count_flops(Adm(CONFIG).eval(), x, t)
    count = FlopCounter(CONFIG, SIDE, STEPS, "small")
    assert count(METHODS["eps"]).flops.adm_call == real


@pytest.fixture(scope="module")
def official() -> dict[str, Any]:
    rows = run_bench(BenchConfig(random_adm=True, timed=False))["rows"]
    return {row["method"]: row for row in rows}


def test_the_official_architecture_has_its_known_size_and_dire_forty_calls_of_it(official: dict[str, Any]) -> None:
    dire, distildire, cnndet = official["dire"], official["distildire"], official["cnndet"]
    assert dire["parameters"] == {"adm": 552_814_086, "student": 23510081, "others": 0}
    assert distildire["parameters"] == {
        "adm": 552_814_086,
        "student": 23_519_489,
        "others": 0,
    }  # 3 more input channels, 64 filters of 7x7
    assert cnndet["parameters"]["adm"] == 0
    assert round(dire["flops"]["adm_call"] / 1e9, 1) == 2239.7
    assert round(cnndet["flops"]["image"] / 1e9, 2) == 8.17  # ResNet-50 at 224: 4.09 G multiply-adds
    assert {name: row["adm_calls"] for name, row in official.items()} == {
        "cnndet": 0, "dire": 40, "dnf": 20, "distildire": 1, "eps": 1,
    }  # fmt: skip


def test_the_ratio_to_dire_is_forty_calls_and_a_student_over_one_call_and_a_student(official: dict[str, Any]) -> None:
    dire, distildire = official["dire"]["flops"], official["distildire"]["flops"]
    expected = (40 * dire["adm_call"] + dire["student"]) / (dire["adm_call"] + distildire["student"])
    assert official["distildire"]["dire"]["flops"] == pytest.approx(expected, rel=1e-12)
    assert 39.8 < expected < 39.9
    assert official["dire"]["dire"]["flops"] == 1


@pytest.mark.parametrize("method", [METHODS[name] for name in BENCH_METHODS], ids=BENCH_METHODS)
def test_a_method_makes_as_many_adm_calls_as_are_counted_and_gives_probabilities(method: Any) -> None:
    torch.manual_seed(0)
    adm = Adm(CONFIG).eval()
    calls: list[int] = []
    adm.register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
    plan = MethodPlan.of(method, CONFIG, SIDE, "ddim4")
    networks = {
        producer.unit: plan.random_network(producer) if isinstance(producer, Single) else adm
        for producer in plan.producers
    }
    way = MethodRunner(plan, plan.random_student("small").eval(), networks, torch.device("cpu"))
    found = way(noise_images(2, SIDE), PassTimer(lambda: None))
    assert calls == [2] * FlopCounter(CONFIG, SIDE, "ddim4", "small")(method).adm_calls
    assert found.shape == (2,)
    alone = [way(noise_images(2, SIDE)[n : n + 1], PassTimer(lambda: None)) for n in range(2)]
    np.testing.assert_allclose(found, np.concatenate(alone), atol=1e-5)
    assert found.dtype == np.float32


def test_the_papers_flops_are_multiply_adds_counted_again_for_every_enclosing_module() -> None:
    """Its tool, TorchTNT, keeps a count for each module; adding all of them up gives Table 2's figures, for 30 ADM calls.

    In the official code the first convolution of a residual block that is not resampled, and the last one of the network,
    have one module more around them than here, and all products of an attention block lie in one module inside it.
    """
    with torch.device("meta"):
        adm, x = Adm(OFFICIAL["adm256"].config).eval(), torch.zeros(1, 3, 256, 256)
        counts = nested(adm, x, torch.zeros(1, dtype=torch.int64))
        plain, wide = (nested(cnndet(channels), torch.zeros(1, channels, 256, 256)) for channels in (3, 6))
    attention = [name for name, module in adm.named_modules() if isinstance(module, AttentionBlock)]
    blocks = [
        name for name, module in adm.named_modules() if isinstance(module, ResBlock) and module.resample == "none"
    ]
    outside = [name for name in counts if not name.startswith(tuple(f"{block}." for block in attention))]
    call = sum(counts[name] for name in outside)
    call += sum(counts[f"{name}.in_layers.2"] for name in blocks) + counts["out.2"]
    call += sum(counts[name] for name in attention)
    dire, distildire = 30 * call + sum(plain.values()), call + sum(wide.values())
    assert [round(found / 1e12, 2) for found in (dire, distildire)] == [149.62, 5.01]
    assert round(sum(plain.values()) / 1e12, 4) == 0.0215  # CNNDet, in the paper 0.021


def nested(module: nn.Module, *inputs: Tensor) -> dict[str, int]:
    """Return the multiply-adds of each module by its name; the empty name is the whole network."""
    counter = FlopCounterMode(display=False)
    with counter, torch.inference_mode():
        module(*inputs)
    found = {name: sum(counts.values()) // 2 for name, counts in counter.get_flop_counts().items() if name != "Global"}
    return {name.partition(".")[2]: count for name, count in found.items()}


def cnndet(channels: int) -> nn.Module:
    network = resnet50(num_classes=1)
    network.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    return network.eval()
