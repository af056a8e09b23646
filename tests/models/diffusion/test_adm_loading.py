"""Loading an ADM by name or file: the source of its flags, refused files, and the loaded weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from distil_cache.errors import UserError
from distil_cache.models.diffusion.checkpoints import OFFICIAL, find_adm, load_adm, read_adm
from distil_cache.models.diffusion.unet import Adm, AdmConfig
from distil_cache.models.weights import read_metadata, read_state_dict, weights_digest
from safetensors.torch import save_file
from small_models import TINY_FLAGS

FLAGS = TINY_FLAGS | {"learn_sigma": True}


@pytest.fixture(autouse=True)
def user_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """Weights of a tiny ADM in a .pt file, without flags."""
    torch.manual_seed(0)
    torch.save(Adm(AdmConfig.from_flags(FLAGS)).state_dict(), tmp_path / "tiny.pt")
    return tmp_path / "tiny.pt"


def write_flags(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_flags_come_from_the_option_before_the_json_beside_before_the_metadata(bare: Path, tmp_path: Path) -> None:
    def with_dropout(dropout: float) -> dict[str, Any]:
        return {**FLAGS, "dropout": dropout}

    path = tmp_path / "tiny.safetensors"
    save_file(read_state_dict(bare), path, {"flags": json.dumps(with_dropout(0.1))})
    assert find_adm(path).config.dropout == 0.1
    write_flags(tmp_path / "tiny.json", {"flags": with_dropout(0.2), "note": "more may stand here"})
    assert find_adm(path).config.dropout == 0.2
    option = write_flags(tmp_path / "option.json", with_dropout(0.3))
    assert find_adm(path, option).config.dropout == 0.3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"flags\.json: is not JSON"),
        ("[1]", r"flags\.json: is not a JSON object"),
        ('{"flags": 3}', r"flags\.json: is not a JSON object"),
        ('{"image_size": "big"}', r"flags\.json: ADM flag image_size"),
        ('{"learn_sigma": "maybe"}', r"flags\.json: ADM flag learn_sigma=maybe: is neither true nor false"),
        ('{"predict_xstart": true}', r"flags\.json: ADM flag predict_xstart"),
    ],
)
def test_wrong_flags_are_refused_naming_the_file(bare: Path, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "flags.json").write_text(text)
    with pytest.raises(UserError, match=message):
        find_adm(bare, tmp_path / "flags.json")


def test_flags_that_cannot_be_read_are_refused(bare: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.json: the ADM's flags cannot be read"):
        find_adm(bare, tmp_path / "absent.json")


def test_weights_that_do_not_fit_the_flags_are_refused_with_what_differs(bare: Path) -> None:
    write_flags(bare.with_suffix(".json"), {**FLAGS, "num_channels": 64})
    message = r"tiny\.json: does not fit the weights in .*tiny\.pt: num_channels 64 \(the tensors: 32\)\."
    with pytest.raises(UserError, match=message):
        load_adm(bare)
    wide = AdmConfig.from_flags({**FLAGS, "num_channels": 64})
    message = r"tiny\.pt: time_embed\.0\.weight has shape \(128, 32\), this network needs \(256, 64\)"
    with pytest.raises(UserError, match=message):
        read_adm(bare, wide)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_stored_float_type_decides_the_digest_and_weights_arrive_as_float32(bare: Path, dtype: torch.dtype) -> None:
    stored = {name: value.to(dtype, copy=True) for name, value in read_state_dict(bare).items()}
    torch.save(stored, bare)
    write_flags(bare.with_suffix(".json"), FLAGS)
    loaded = load_adm(bare)
    assert loaded.digest == weights_digest(stored)
    assert loaded.source == str(bare)
    for name, value in loaded.model.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, stored[name].float())
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())


def test_pt_and_safetensors_are_the_same_adm(bare: Path, tmp_path: Path) -> None:
    write_flags(tmp_path / "tiny.json", FLAGS)
    save_file(read_state_dict(bare), tmp_path / "tiny.safetensors")
    one, other = find_adm(bare), find_adm(tmp_path / "tiny.safetensors")
    assert (one.digest, one.config) == (other.digest, other.config)


def test_a_name_that_is_nothing_lists_the_names(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--adm adm257: no such file.*demo, demo-b, adm256, lsun-bedroom"):
        find_adm("adm257")


def test_adm256_is_looked_for_in_the_download_folder_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTIL_CACHE_WEIGHTS", str(tmp_path))
    (tmp_path / OFFICIAL["adm256"].file.name).write_bytes(b"another file")
    with pytest.raises(UserError, match=r"256x256_diffusion_uncond\.pt: SHA-256 is .*, expected a37c32ff…"):
        find_adm("adm256")


def test_a_golden_checkpoint_loads_with_the_flags_in_its_metadata(shared: Path, tmp_path: Path) -> None:
    path = tmp_path / "moved and renamed.safetensors"
    shutil.copyfile(shared / "golden" / "a_rb1.weights.safetensors", path)
    loaded = load_adm(path)
    assert loaded.config == AdmConfig.from_flags(json.loads(read_metadata(path)["flags"]))
    assert loaded.model.parameter_count() == 998_342
    stored, held = read_state_dict(path), loaded.model.state_dict()
    assert held.keys() == stored.keys()
    assert all(torch.equal(held[name], value.float()) for name, value in stored.items())


def test_adm256_has_the_flags_and_keys_of_the_official_checkpoint(shared: Path) -> None:
    official = json.loads((shared / "golden" / "adm256_keys.json").read_text())
    assert OFFICIAL["adm256"].config == AdmConfig.from_flags(official["flags"])
    with torch.device("meta"):
        model = Adm(OFFICIAL["adm256"].config)
    assert {name: list(value.shape) for name, value in model.state_dict().items()} == official["keys"]
