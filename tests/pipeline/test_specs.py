"""The fingerprints of the released specs, by their digits: a change of one loses every user the rows of that feature."""

from __future__ import annotations

import pytest
from distil_cache.cache.spec import Spec
from distil_cache.images.spec import ImageSpec
from distil_cache.pipeline.specs import AdmIdentity, DireSpec, EpsSpec, NoiseSpec, ReconSpec, TeacherSpec

IMAGE = ImageSpec(size=256)
ADM = AdmIdentity(weights="ab" * 32, flags={"image_size": 256, "noise_schedule": "linear", "learn_sigma": True})
DIRE = DireSpec(image=IMAGE, adm=ADM)
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize(
    ("spec", "folder"),
    [
        (IMAGE, "image-9b0f293d17472dec"),
        (EpsSpec(image=IMAGE, adm=ADM), "eps-623eac4bc446b431"),
        (ReconSpec(image=IMAGE, adm=ADM), "recon-8bd1ce1e1cdf1337"),
        (DIRE, "dire-1cb1d75675880a70"),
        (NoiseSpec(image=IMAGE, adm=ADM), "noise-22f58692cc4ddacc"),
        (
            TeacherSpec(dire=DIRE, backbone="resnet50", weights="cd" * 32, size=224, mean=IMAGENET[0], std=IMAGENET[1]),
            "teacher-9c413d4e8c26934e",
        ),
    ],
)
def test_the_folder_of_a_spec_stays_what_it_was_released_as(spec: Spec, folder: str) -> None:
    assert spec.folder == folder, (
        "raise `algorithm` if values change; leave a new field out at its default (Spec.ADDED)"
    )
