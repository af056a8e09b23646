"""Pooled features of frozen backbones, of this package and of timm: what they are, of what they are named, what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from distil_cache.errors import UserError
from distil_cache.features.builtin.embedding import EmbeddingSpec, PooledFeatures
from distil_cache.features.registry import layout_of, make_specs, networks_of
from distil_cache.images.spec import ImageSpec
from distil_cache.models import timm_backbones
from distil_cache.models.backbones import BackboneSource, backbone_entry, build_backbone, load_teacher, resize
from distil_cache.models.weights import load_frozen
from safetensors.torch import save_file
from small_models import SIDE, write_teacher
from torch import Tensor, nn
from torch.nn import functional

GOLDEN = Path(__file__).parent / "data" / "golden_rows.json"


def options(backbone: str, weights: Path | None) -> dict[str, object]:
    return {"embedding": backbone, "embedding_weights": weights, "sha256": ()}


def spec_of(backbone: str, weights: Path, **changes: object) -> EmbeddingSpec:
    source = networks_of(["embedding"], options(backbone, weights))["embedding"]
    own = {**source.fields(source.digest()), **changes}
    made = make_specs(["embedding"], {}, {"image": ImageSpec(size=SIDE)}, {"embedding": own})["embedding"]
    assert isinstance(made, EmbeddingSpec)
    return made


def rows(backbone: str, weights: Path, images: Tensor) -> Tensor:
    spec = spec_of(backbone, weights)
    network = BackboneSource(backbone, weights, pooled=True).load()
    made = PooledFeatures().rows(network, {"image": images}, spec)
    layout = layout_of(spec)
    assert (tuple(made.shape[1:]), made.dtype, layout.geometry) == (layout.shape, torch.float16, "vector")
    return made


def images(count: int = 2) -> Tensor:
    return torch.randint(0, 256, (count, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(5), dtype=torch.uint8)


def test_an_embedding_is_the_average_of_the_map_of_the_image_and_of_its_mirror_image(tmp_path: Path) -> None:
    weights = write_teacher(tmp_path / "small.safetensors")
    pixels = images()
    found = rows("small", weights, pixels)
    network = load_teacher("small", weights).model
    x = functional.interpolate(pixels.float() / 255, (224, 224), mode="bilinear", antialias=True)
    with torch.no_grad():
        expected = [network((view - 0.5) / 0.5).mean(dim=(2, 3)).half() for view in (x, x.flip(-1))]
    assert torch.equal(found, torch.stack(expected, dim=1))
    assert not torch.equal(found[:, 0], found[:, 1])


def test_rows_stay_what_they_were_released_as(tmp_path: Path) -> None:
    found = rows("small", write_teacher(tmp_path / "small.safetensors"), images())[:, :, :6]
    np.testing.assert_allclose(found.float().numpy(), json.loads(GOLDEN.read_text())["embedding"], rtol=2e-3, atol=2e-4)


def test_a_spec_names_weights_and_the_input_that_they_were_trained_with(tmp_path: Path) -> None:
    weights = write_teacher(tmp_path / "small.safetensors")
    spec = spec_of("small", weights)
    assert (spec.backbone, spec.size, spec.interpolation, spec.mean) == ("small", 224, "bilinear", (0.5, 0.5, 0.5))
    assert spec.weights == load_teacher("small", weights).digest
    other = spec_of("small", write_teacher(tmp_path / "other.safetensors", seed=1))
    assert other.fingerprint() != spec.fingerprint() != spec_of("small", weights, size=96).fingerprint()


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_an_image_is_resized_as_its_spec_says_and_stays_within_its_range(interpolation: str) -> None:
    edge = torch.zeros(1, 3, 16, 16)
    edge[..., 8:] = 1.0
    found = resize(edge, 40, interpolation)  # type: ignore[arg-type]
    expected = functional.interpolate(edge, (40, 40), mode=interpolation, antialias=True)
    assert torch.equal(found, expected.clamp(0, 1))
    assert bool((expected > 1).any()) == (interpolation == "bicubic")
    assert resize(edge, 16, interpolation) is edge  # type: ignore[arg-type]


class Counting(nn.Module):
    """A network with a buffer that no file has."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.register_buffer("positions", torch.arange(2.0), persistent=False)


def test_a_buffer_that_no_file_has_is_computed_when_the_network_is_loaded() -> None:
    state = Counting().state_dict()
    torch.manual_seed(3)
    loaded = load_frozen(Counting, state, "here")
    assert loaded.get_buffer("positions").tolist() == [0, 1]
    assert torch.equal(loaded.linear.weight, state["linear.weight"])
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(1)), "loading draws no number of the training's generator"


# what follows needs timm


def timm_weights(folder: Path, model: str) -> Path:
    """Save random weights of one of timm's models as timm has them, with its classifier."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(1)
    path = folder / f"{model}.safetensors"
    save_file(timm.create_model(model, pretrained=False).state_dict(), path)
    return path


@pytest.mark.parametrize("model", ["test_resnet", "test_vit"])
def test_the_embedding_of_a_timm_model_is_what_timm_gives_for_its_own_input(tmp_path: Path, model: str) -> None:
    import timm

    weights = timm_weights(tmp_path, model)
    pixels = images()
    found = rows(f"timm:{model}", weights, pixels)
    theirs = timm.create_model(model, pretrained=False, num_classes=1000).eval()
    theirs.load_state_dict(timm.models.load_state_dict(str(weights)))
    theirs.reset_classifier(0)
    data = timm.data.resolve_model_data_config(theirs)
    side = data["input_size"][-1]
    x = functional.interpolate(pixels.float() / 255, (side, side), mode=data["interpolation"], antialias=True).clamp(
        0, 1
    )
    mean, std = (torch.tensor(data[name])[:, None, None] for name in ("mean", "std"))
    with torch.no_grad():
        expected = theirs((x - mean) / std).half()
    assert torch.equal(found[:, 0], expected)
    spec = spec_of(f"timm:{model}", weights)
    assert (spec.size, spec.interpolation, spec.mean) == (side, data["interpolation"], data["mean"])


def test_the_weights_of_a_timm_model_are_the_same_with_and_without_its_classifier(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    whole = timm_weights(tmp_path, "test_resnet")
    state = {name: value for name, value in load_file(whole).items() if not name.startswith("fc.")}
    save_file(state, tmp_path / "cut.safetensors")
    digests = {BackboneSource("timm:test_resnet", path).digest() for path in (whole, tmp_path / "cut.safetensors")}
    assert len(digests) == 1


def test_a_timm_network_with_a_map_can_teach_and_learn_and_one_without_makes_embeddings_alone() -> None:
    pytest.importorskip("timm")
    assert build_backbone("timm:test_resnet", 6).eval()(torch.rand(2, 6, 64, 64)).shape == (2, 96, 2, 2)
    entry = backbone_entry("timm:test_resnet.r160_in1k")
    assert (entry.channels, entry.stem, entry.published and entry.published.name) == (
        96, "conv1.0.weight", "hf:timm/test_resnet.r160_in1k/model.safetensors",
    )  # fmt: skip
    with pytest.raises(UserError, match=r"backbone timm:test_vit: has no map .* It can make the feature `embedding`"):
        build_backbone("timm:test_vit")


def test_a_model_that_timm_does_not_have_or_an_input_that_it_does_not_take_is_one_sentence(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    with pytest.raises(UserError, match=r"timm:nonsense: timm [\d.]+ has no such model"):
        backbone_entry("timm:nonsense")
    spec = spec_of("timm:test_vit", timm_weights(tmp_path, "test_vit"), size=100)
    with pytest.raises(UserError, match="embedding: backbone timm:test_vit takes no images of 100 pixels"):
        layout_of(spec)


def test_without_timm_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    timm_backbones.timm_entry.cache_clear()
    with pytest.raises(UserError, match=r"pip install 'distil-cache\[timm\]'"):
        backbone_entry("timm:test_resnet")
