"""The error for features that were built with other settings than those of a training: how they differ, what to do."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from ...cache.records.builds import BuildRecord
from ...cache.spec import fingerprint_without, harmonization_of, without
from ...cache.store import Cache
from ...errors import UserError


def other_settings(
    cache: Cache, dataset: str, records: Sequence[BuildRecord], fixed: Mapping[str, str], names: Sequence[str]
) -> UserError:
    """Make the error for builds whose features are not those of a training.

    Parameters
    ----------
    cache, dataset
        The cache, and the dataset that was to be read.
    records
        Its builds that have the features.
    fixed
        Feature -> its fingerprint in the training.
    names
        The features that were to be read.
    """
    what, remedy = "with other settings than", "Build it with the options of the training's build."
    trained = [store.spec for store in cache.features() if store.fingerprint in fixed.values()]
    own = [[cache.open_feature(record.features[name].folder).spec for name in fixed] for record in records]
    histories = {harmonization_of(spec) for specs in own for spec in specs}
    if any(_differ_alone(specs, trained, "perturb", "algorithm") for specs in own):
        what = "by the rules of another version (algorithm) than"
        remedy = "Build the data of the training again and train, or name a build of then with --build."
    elif len(histories) == 1 and any(
        _differ_alone(specs, trained, "perturb", "algorithm", "harmonize") for specs in own
    ):
        what, remedy = _another_history(cache, dataset, histories.pop(), harmonization_of(trained[0]))
    return UserError(
        f"{dataset}: its features {', '.join(names)} were built {what} those of the training, so "
        f"the scores would be meaningless. {remedy}"
    )


def _differ_alone(own: Sequence[Mapping[str, object]], trained: Sequence[Mapping[str, object]], *settings: str) -> bool:
    """Return whether the features of a build and of a training are the same but for some settings."""

    def rest(spec: Mapping[str, object]) -> str:
        for setting in settings[:-1]:
            spec = without(spec, setting)
        return fingerprint_without(spec, settings[-1])

    return bool(trained) and {rest(spec) for spec in own} == {rest(spec) for spec in trained}


def _another_history(cache: Cache, dataset: str, own: str, trained: str) -> tuple[str, str]:
    """Say how images with one compression (``--harmonize``) differ from those of a training, and what can be done."""
    if trained:
        given = f"--harmonize {own}" if own else "without --harmonize"
        return f"{given}, not --harmonize {trained} like", f"Build it with --harmonize {trained}."
    root = shlex.quote(str(cache.root))
    ways = (
        f"distil-cache audit --swap RUN --harmonize {own} scores the run's own test images with and without it",
        f"distil-cache build --cache {root} --from-cache --dataset DATASET --perturb {own}, with the training's dataset and "
        "the other options of its build, makes a test set that evaluate takes",
        f"a folder with the files of {dataset} saved again as JPEG can be built without --harmonize",
    )
    return f"with --harmonize {own}, unlike", f"Three ways test a student on one history: {'; '.join(ways)}."
