"""The fingerprints of the released specs, by their digits: a change of one loses every user the rows of that feature."""

from __future__ import annotations

import pytest
from distil_cache.cache.spec import Spec, algorithms, fingerprint_without
from distil_cache.features.adm import AdmIdentity
from distil_cache.features.builtin.dire import DireSpec
from distil_cache.features.builtin.eps import EpsSpec
from distil_cache.features.builtin.noise import NoiseSpec
from distil_cache.features.builtin.recon import ReconSpec
from distil_cache.features.builtin.teacher import TeacherSpec
from distil_cache.features.registry import with_image_algorithm
from distil_cache.images.spec import ImageSpec

IMAGE = ImageSpec(size=256, algorithm=1)
ADM = AdmIdentity(weights="ab" * 32, flags={"image_size": 256, "noise_schedule": "linear", "learn_sigma": True})
DIRE = DireSpec(image=IMAGE, adm=ADM)
NEW_IMAGE = ImageSpec(size=256)
NEW_DIRE = DireSpec(image=NEW_IMAGE, adm=ADM)
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize(
    ("spec", "folder"),
    [
        (IMAGE, "image-9b0f293d17472dec"),
        (EpsSpec(image=IMAGE, adm=ADM), "eps-623eac4bc446b431"),
        (ReconSpec(image=IMAGE, adm=ADM, algorithm=1), "recon-8bd1ce1e1cdf1337"),
        (DIRE, "dire-1cb1d75675880a70"),
        (NoiseSpec(image=IMAGE, adm=ADM), "noise-22f58692cc4ddacc"),
        (
            TeacherSpec(dire=DIRE, backbone="resnet50", weights="cd" * 32, size=224, mean=IMAGENET[0], std=IMAGENET[1]),
            "teacher-9c413d4e8c26934e",
        ),
        (NEW_IMAGE, "image-14dc86f42e7f85c0"),
        (EpsSpec(image=NEW_IMAGE, adm=ADM), "eps-ef022987d00d5e60"),
        (ReconSpec(image=NEW_IMAGE, adm=ADM), "recon-997ec1b4e1a16e92"),
        (NEW_DIRE, "dire-aa90bba9b59c5305"),
        (NoiseSpec(image=NEW_IMAGE, adm=ADM), "noise-9935ee747cee298a"),
        (
            TeacherSpec(
                dire=NEW_DIRE, backbone="resnet50", weights="cd" * 32, size=224, mean=IMAGENET[0], std=IMAGENET[1]
            ),
            "teacher-e3a81df81c927cb6",
        ),
    ],
)
def test_the_folder_of_a_spec_stays_what_it_was_released_as(spec: Spec, folder: str) -> None:
    assert spec.folder == folder, (
        "raise `algorithm` if values change; leave a new field out at its default (Spec.ADDED)"
    )


@pytest.mark.parametrize(
    "spec",
    [
        IMAGE,
        EpsSpec(image=IMAGE, adm=ADM),
        DIRE,
        TeacherSpec(dire=DIRE, backbone="resnet50", weights="cd" * 32, size=224, mean=IMAGENET[0], std=IMAGENET[1]),
    ],
)
def test_the_algorithm_of_the_images_is_exchanged_at_any_depth_and_nothing_else(spec: Spec) -> None:
    raised = with_image_algorithm(spec, 2)
    assert algorithms(raised.canonical()) != algorithms(spec.canonical())
    assert fingerprint_without(raised.canonical(), "algorithm") == fingerprint_without(spec.canonical(), "algorithm")
    assert with_image_algorithm(raised, 1) == spec
