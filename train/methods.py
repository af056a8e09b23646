"""What a student learns from: each method in one small definition.

* ``distildire``: the image and eps, six channels, plus the distillation loss against the teacher's map of the DIRE
  image (DistilDIRE, arXiv 2406.00856, section 3). Only eps is exempt from normalisation there, as we read it.
* ``dire``: the DIRE image alone, normalised like a photograph (DIRE, arXiv 2303.09295, section 4.1).
* ``eps``: the first step's noise alone, unnormalised: what of DistilDIRE remains without the picture.

All of them start from random weights and share one augmentation (see ``augment``), so that rows of a table differ in
what is read and in the loss alone.
"""

from __future__ import annotations

from dataclasses import dataclass

CHANNELS_PER_FEATURE = 3


@dataclass(frozen=True)
class Method:
    """One way to detect.

    inputs : cached features, joined along the channels in this order.
    normalised : those of them that get ImageNet's mean and standard deviation.
    distils : whether the loss has a term against the cached teacher features.
    """

    name: str
    inputs: tuple[str, ...]
    normalised: frozenset[str]
    distils: bool

    @property
    def channels(self) -> int:
        """Channels of the student's input."""
        return CHANNELS_PER_FEATURE * len(self.inputs)

    def training_features(self, distillation: float) -> tuple[str, ...]:
        """Cached features that training reads; the teacher only where its loss has weight."""
        return (*self.inputs, "teacher") if self.distils and distillation > 0 else self.inputs


METHODS = {
    method.name: method
    for method in (
        Method("distildire", inputs=("image", "eps"), normalised=frozenset({"image"}), distils=True),
        Method("dire", inputs=("dire",), normalised=frozenset({"dire"}), distils=False),
        Method("eps", inputs=("eps",), normalised=frozenset(), distils=False),
    )
}
