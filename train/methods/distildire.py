"""DistilDIRE (arXiv 2406.00856): image and eps, taught by a frozen backbone that sees DIRE.

``paper`` is what the text describes and what the cached teacher serves. ``official-code`` is what the published code does:
its CutMix mixes DIRE images before the teacher sees them, so no precomputed teacher feature can serve it, and the teacher
runs online on the cached DIRE.
"""

from __future__ import annotations

from .method import Degradation, Method, MethodDefaults

DISTILDIRE = Method(
    "distildire",
    title="DistilDIRE",
    scales={"image": "imagenet", "eps": "stored"},
    target="teacher",
    defaults=MethodDefaults(epochs=20, batch_size=64, lr=1e-4, kd_weight=0.5),
)

DISTILDIRE_CODE = Method(
    "distildire",
    title="DistilDIRE",
    preset="official-code",
    scales={"image": "signed", "eps": "stored"},
    target="teacher",
    online=True,
    whole=True,
    flips=False,
    degradation=Degradation(probability=1.0, blur=(0.0, 0.0), jpeg=(10, 99), adjustable=False, truncated=True),
    cutmix=0.5,
    pos_weight=0.5,
    defaults=MethodDefaults(epochs=100, batch_size=256, lr=1e-5, beta1=0.9, kd_weight=1.0),
    caveat="trained as the published code does it: in training the image passes through JPEG while its eps and DIRE "
    "stay those of the clean image, and the teacher runs online because CutMix mixes DIRE before it",
)
