"""Detectors that learn nothing: a number by definition, and a threshold from validation.

``mean_dire`` is the mean of DIRE. The hypothesis of Wang et al. 2023 is that a diffusion model reconstructs generated
images better than real ones, so that a small error means generated. ``sedid`` is SeDID's statistic (arXiv 2307.06272):
a small error of a step means that the model has met such images, generated ones. ``aeroblade`` is AEROBLADE's (Ricker
et al. 2024): an autoencoder reconstructs what a latent diffusion model generated better than real images. All keep the
sign of their definition on data that contradict it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .method import Method, MethodDefaults

if TYPE_CHECKING:
    from ..students.student import Shapes, Student

SMALL_IS_GENERATED = -1.0


def score_student(method: Method, shapes: Shapes, backbone: str, teacher_channels: int | None) -> Student:
    """Build the score of a feature of which small numbers mean generated."""
    from ..students.score import ScoreStudent

    return ScoreStudent(shapes, SMALL_IS_GENERATED)


def _score(name: str, title: str, feature: str, caveat: str = "") -> Method:
    """Return the method that learns nothing but where the middle of a feature lies."""
    return Method(
        name,
        title=title,
        scales={feature: "stored"},
        student=score_student,
        backbone=False,
        whole=True,
        flips=False,
        defaults=MethodDefaults(epochs=0),
        caveat=caveat,
    )


MEAN_DIRE = _score("mean_dire", "Mean DIRE", "dire")

AEROBLADE = _score(
    "aeroblade",
    "AEROBLADE",
    "vae_error",
    "its distance was chosen among L1, L2 and the layers of LPIPS by the classes of the training images, and comes "
    "from one autoencoder; AEROBLADE takes the second layer, and the least of several autoencoders",
)

SEDID = _score(
    "sedid",
    "SeDID's step error",
    "stepwise",
    "its step was chosen by the classes of the training images, and its diffusion model need not be the one that "
    "generated the images, as it is in SeDID",
)
