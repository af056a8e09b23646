"""Families of generators by their names."""

from __future__ import annotations

import re
from functools import cache

from ..words import label_of_word, normalised

_FAMILIES = {
    "gan": "biggan cyclegan diffgan gaugan gigagan progan projectedgan stargan stylegan",
    "diffusion": "adm cogview dall dalle ddim ddpm deepfloyd diffusion firefly flux glide guided hunyuan ideogram if "
    "iddpm imagen kandinsky kolors latent ldm midjourney pixart playground pndm sana sd sdv sdxl stable vqdiffusion "
    "vqdm wukong",
    "real": "real",
}
"""Family -> words in a generator's name. GANs come first: ``diff-stylegan`` is one."""

_AMBIGUOUS = frozenset({"diffusion", "guided", "if", "latent", "playground", "sana", "sd", "stable"})
"""Names that a folder may well have for another reason. As a part of a longer name they count."""

_COLLECTIONS = frozenset({"benchmark", "benchmarks", "dataset", "datasets", "testset", "trainset"})
"""Words in the name of a folder that holds several generators."""


@cache
def family_of(generator: str) -> str:
    """Return the family of a generator by its name: ``gan``, ``diffusion``, ``real``, else ``unknown``.

    Only letters count: ``sd14``, ``SDv1_new1`` and ``stylegan2-ada`` match ``sd``, ``sdv`` and ``stylegan``.
    """
    words = set(re.findall("[a-z]+", generator.lower()))
    return next((family for family, known in _FAMILIES.items() if words & set(known.split())), "unknown")


def is_known_generator(name: str) -> bool:
    """Check whether a folder's name is certainly that of a generator, so that its images are generated.

    A name with a word for real is not: ``real_stylegan`` may hold the photographs that StyleGAN was trained with. Nor is
    that of a collection: ``diffusion_datasets``.
    """
    if family_of(name) not in ("gan", "diffusion") or normalised(name) in _AMBIGUOUS:
        return False
    words = set(re.findall("[a-z]+", name.lower()))
    return not words & _COLLECTIONS and not any(label_of_word(word) == 0 for word in words)
