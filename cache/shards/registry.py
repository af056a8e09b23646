"""The formats of shards that there are, and how a shard's data are opened whichever they have."""

from __future__ import annotations

from ...errors import IntegrityError
from ...storage import AnyPath
from .format import ShardFormat, ShardReader, data_files
from .marker import Marker, check_hint
from .tar import TarFormat
from .zarr import ZarrFormat

FORMATS: dict[str, ShardFormat] = {form.name: form for form in (ZarrFormat(), TarFormat())}


def open_data(path: AnyPath, marker: Marker, feature: str, folder: AnyPath) -> ShardReader:
    """Open a shard's data after checking presence and size; IntegrityError says what is wrong.

    feature : its name; folder : where it lies in the cache, for the message.
    """
    form = FORMATS.get(marker.format)
    what = f"{feature}, shard {marker.shard}"
    if form is None or not marker.data.endswith(form.suffix):
        raise IntegrityError(f"{what}: has the unknown format {marker.format!r}. {check_hint(folder)}")
    try:
        files = data_files(path)
    except IntegrityError as error:
        raise IntegrityError(f"{what}: {error} {check_hint(folder)}") from error
    size = sum(bytes_ for _, _, bytes_ in files)
    if size != marker.bytes:
        raise IntegrityError(
            f"{what}: {path} has {size:,} bytes, its marker says {marker.bytes:,}. {check_hint(folder)}"
        )
    return form.open(path, files, marker, feature)
