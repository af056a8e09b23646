"""The command ``features``: list what can be computed."""

from __future__ import annotations

from .options import JsonOption, render


def features(as_json: JsonOption = False) -> None:
    """List the features that can be computed: of this program, and of other installed packages.

    Calls are those of one image at the defaults of build. Several features of one pass share its calls. Writes nothing.

    Exit codes: 0 success, 1 failure, 2 invalid arguments.
    """
    from ..pipeline.planning.feature_list import list_features
    from .show.features import show_features

    render({"features": list_features()}, as_json, show_features)
