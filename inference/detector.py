"""A trained student as a detector of generated images and videos.

    from distil_cache.inference import Detector
    detector = Detector.from_run("RUN")
    predictions = detector.predict(["a.jpg", "b.png"])

The models are loaded once and stay. An image is decoded, its features are made with the specs that the student learnt from,
and it goes through the test transform and the student as in ``evaluate``: the score is the one that an evaluation gives.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import torch
from PIL import Image

from ..choices import METHOD
from ..errors import UserError
from ..images.file import Limits
from ..metrics.calibration import Calibration
from ..models.device import choose_device
from ..pipeline.execution.transfer import HostArray
from ..storage import AnyPath
from ..train.data.augment import test_input
from ..train.evaluation.score import probability
from ..train.runs.folder import RunFolder, RunRecord
from ..train.runs.reference_checkpoint import read_checkpoint
from ..train.student import Student
from .decode import DecodedInput, InputDecoder, InputItem, Source
from .explain import SHOWN, Explainer
from .feature_specs import FeatureSpecs, read_feature_specs
from .features import FeatureMaker
from .find_adm import find_adm_for_run
from .options import Options
from .prediction import Frame, Prediction

DEFAULT_THRESHOLD = 0.5


class Threshold(NamedTuple):
    """The score above which an image counts as generated, and where that number comes from.

    value : 0 to 1. origin : who chose it. words : the same for a person. transform : under which validation chose it.
    """

    value: float
    origin: Literal["given", "validation", "default"]
    words: str
    transform: str | None = None

    @classmethod
    def of(cls, given: float | None, calibration: Calibration | None) -> Self:
        """Return what was asked for, else what validation chose, else 0.5."""
        if given is not None:
            return cls(given, "given", f"threshold {given:g}, as asked for")
        if calibration is None:
            words = f"threshold {DEFAULT_THRESHOLD}: the run has no calibrated one"
            return cls(DEFAULT_THRESHOLD, "default", words)
        value, images = calibration.threshold, calibration.real + calibration.fake
        words = f"threshold {value:.4g}, chosen on {images:,} images of {calibration.split}"
        return cls(value, "validation", words, calibration.transform)


class Detector:
    """Scores images and videos; made by :meth:`from_run` or :meth:`from_weights`.

    record : the run's. threshold : a score above ``threshold.value`` says generated. eye : makes pictures. maker : makes features;
    ``maker.calls`` is what an image costs. notes : what a reader of the scores must know, a phrase each.
    """

    def __init__(self, student: Student, record: RunRecord, threshold: Threshold, options: Options) -> None:
        self.record, self.threshold, self.options = record, threshold, options
        self.device = choose_device(options.device)
        self.settings = read_feature_specs(record, options.cache)
        wanted = sorted({*record.method.inputs, *(SHOWN if options.explain else ())} - {"image"})
        adm = find_adm_for_run(self.settings, wanted, options.adm, options.adm_config)
        specs = {name: self.settings.spec(name, adm.identity, options.precision) for name in wanted} if adm else {}
        self.maker = FeatureMaker(specs, adm, self.device, options.batch_size)
        self.notes = _notes(self.settings, record, threshold, options, self.maker)
        self.eye = InputDecoder(self.settings.image, Limits(), options.frames, options.workers)
        self._explainer = Explainer(options.explain) if options.explain else None
        self._student = student.to(self.device).eval()

    @classmethod
    def from_run(cls, run: Path | str, **options: Any) -> Self:
        """Load the best student of a run. The options are the fields of :class:`.options.Options`.

        Raises UserError for a folder that is no run and for an ADM that is not the run's or cannot be found, UsageError for
        options that do not exist or do not fit.
        """
        chosen = Options.checked(**options)
        folder = RunFolder(Path(run))
        student, record, facts = folder.load_student()
        return cls(student, record, Threshold.of(chosen.threshold, folder.calibration(facts["sha256"])), chosen)

    @classmethod
    def from_weights(cls, file: Path | str, method: str = METHOD, **options: Any) -> Self:
        """Load a student of the reference implementation (``.pth`` or ``.safetensors``), as ``checkpoint import`` reads it.

        method : ``distildire``, or ``eps`` for its ``--only_eps``. Raises UserError for a file that is damaged or holds
        another network; the rest is as in :meth:`from_run`.
        """
        chosen = Options.checked(**options)
        student, record = read_checkpoint(Path(file), method)
        return cls(student, record, Threshold.of(chosen.threshold, None), chosen)

    def predict(self, sources: Source | Iterable[Source]) -> list[Prediction]:
        """Score paths, Pillow images and uint8 arrays, one or many; the predictions are in their order.

        What cannot be used gets a prediction with a reason and no score. Raises UsageError for what is none of these, and
        UserError if a model gives no finite number.
        """
        return list(self.stream(sources))

    def stream(self, sources: Source | Iterable[Source]) -> Iterator[Prediction]:
        """Score as :meth:`predict` does, and yield the predictions batch by batch. Memory does not grow with their number."""
        if isinstance(sources, str | AnyPath | Image.Image) or (isinstance(sources, np.ndarray) and sources.ndim < 4):
            sources = [sources]
        items: Iterable[InputItem] = (InputItem.of(number, source) for number, source in enumerate(sources, 1))
        pictures = None
        if isinstance(sources, Sequence | np.ndarray):
            items = list(items)
            pictures = sum(self.options.frames if item.video else 1 for item in items)
        room = self.maker.room(pictures)
        with closing(self.eye.look(items, 2 * room)) as looked:
            for group in _groups(looked, room):
                yield from self._judged(group)

    def _judged(self, group: Sequence[DecodedInput]) -> Iterator[Prediction]:
        """Predictions of a few items whose pictures go through the models together."""
        pictures = [picture for looked in group for picture in looked.pictures]
        features: dict[str, HostArray] = {}
        logits = scores = np.zeros(0, np.float32)
        if pictures:
            features = {"image": np.stack(pictures)}
            features |= self.maker.make(features["image"])
            logits = self._logits(features)
            scores = probability(logits)
        start = 0
        for looked in group:
            own = slice(start, start + len(looked.pictures))
            seen = {name: rows[own] for name, rows in features.items()}
            yield self._prediction(looked, logits[own].tolist(), scores[own].tolist(), seen)
            start = own.stop

    def _logits(self, features: dict[str, HostArray]) -> HostArray:
        """The student's outputs, (N,) float32; UserError if one is not finite."""
        parts = []
        step = self.record.config.batch_size
        with torch.inference_mode():
            for start in range(0, len(features["image"]), step):
                batch = {
                    name: torch.from_numpy(features[name][start : start + step]).to(self.device)
                    for name in self.record.method.inputs
                }
                x = test_input(batch, self.record.method, self.record.train_size, self.options.transform)
                parts.append(self._student(x)[0].cpu().numpy())
        logits = np.concatenate(parts)
        if not np.isfinite(logits).all():
            raise UserError(f"run {self.record.run}: its student gives numbers that are not finite. Train it again.")
        return logits

    def _prediction(
        self, looked: DecodedInput, logits: Sequence[float], scores: Sequence[float], features: dict[str, HostArray]
    ) -> Prediction:
        item, rejected = looked.item, looked.rejected
        kind = "video" if item.video else "image"
        if rejected is not None:
            return Prediction(item.name, kind, reason=rejected.reason, detail=rejected.detail)
        explained = [self._explained(item, place, features) for place in range(len(scores))]
        score = float(np.mean(scores)) if item.video else scores[0]
        generated = score > self.threshold.value
        if not item.video:
            return Prediction(item.name, kind, score, logits[0], generated, explained=explained[0])
        frames = tuple(Frame(*frame) for frame in zip(looked.seconds, scores, logits, explained, strict=True))
        return Prediction(item.name, kind, score, None, generated, max(scores), frames)

    def _explained(self, item: InputItem, place: int, features: dict[str, HostArray]) -> str | None:
        if self._explainer is None:
            return None
        frame = place if item.video else None
        return self._explainer.write(item.number, item.name, frame, {name: features[name][place] for name in SHOWN})


def _notes(
    settings: FeatureSpecs, record: RunRecord, threshold: Threshold, options: Options, maker: FeatureMaker
) -> tuple[str, ...]:
    found = [threshold.words]
    if threshold.transform not in (None, options.transform):
        found.append(f"that was under the test transform {threshold.transform}, and this is {options.transform}")
    if settings.unknown and maker.specs:
        found.append(settings.unknown)
    if settings.image.perturb is not None:
        found.append(
            f"the student learnt from pictures after {settings.image.perturb}, so each picture goes through that"
        )
    trained_in = {spec.precision for spec in settings.path.values()} - {options.precision}
    if options.precision and trained_in and maker.specs:
        found.append(
            f"features are made in {options.precision}, and the student learnt from {', '.join(sorted(trained_in))}"
        )
    if options.explain:
        found.append(f"DIRE for --explain costs {maker.calls} ADM calls an image")
    return (*found, *(() if record.imported else record.notes()))


def _groups(looked: Iterable[DecodedInput], room: int) -> Iterator[list[DecodedInput]]:
    """Put items together until they have as many pictures as go through the models at once."""
    group: list[DecodedInput] = []
    held = 0
    for one in looked:
        group.append(one)
        held += len(one.pictures)
        if held >= room:
            yield group
            group, held = [], 0
    if group:
        yield group
