"""The methods that there are, by name and preset."""

from __future__ import annotations

from dataclasses import replace

from ...choices import Preset
from ...errors import UsageError
from .cnndet import CNNDET
from .custom import CustomMethod
from .dire import DIRE
from .distildire import DISTILDIRE, DISTILDIRE_CODE
from .dnf import DNF
from .eps import EPS
from .method import Method
from .probe import PROBE
from .score import AEROBLADE, MEAN_DIRE, SEDID

METHODS: dict[str, Method] = {
    method.name: method for method in (DISTILDIRE, DIRE, DNF, CNNDET, EPS, PROBE, MEAN_DIRE, SEDID, AEROBLADE)
}
"""By name, in the preset ``paper``."""

PRESETS: dict[tuple[str, Preset], Method] = {
    (method.name, method.preset): method for method in (*METHODS.values(), DISTILDIRE_CODE)
}


def find_method(
    name: str, preset: Preset = "paper", aug_prob: float | None = None, custom: CustomMethod | None = None
) -> Method:
    """Return a method's definition.

    Parameters
    ----------
    name, preset
        Method and preset.
    aug_prob
        Probability of its blur and JPEG, if not the default.
    custom
        What a file says of a method of this name.

    Raises
    ------
    UsageError
        The method or preset does not exist, or the method has no such probability.
    """
    if custom is not None and name in METHODS:
        raise UsageError(f"method: {name} is the name of a method that there is. Give your file another name.")
    if custom is None and name not in METHODS:
        raise UsageError(f"method: unknown method {name!r}; use {', '.join(METHODS)}, or a file NAME.toml.")
    if custom is not None and preset == "paper" and aug_prob is None:
        return custom.method(name)
    if (name, preset) not in PRESETS:
        having = ", ".join(sorted(known for known, of in PRESETS if of == preset))
        raise UsageError(f"preset: method {name} has no preset {preset!r}; only {having or 'no method'} has it.")
    method = PRESETS[name, preset]
    if aug_prob is None:
        return method
    if method.degradation is None or not method.degradation.adjustable:
        having = ", ".join(m.name for m in METHODS.values() if m.degradation and m.degradation.adjustable)
        raise UsageError(f"aug_prob: method {name}, preset {preset}, has no probability to set; only {having} has one.")
    return replace(method, degradation=replace(method.degradation, probability=aug_prob))
