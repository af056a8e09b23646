"""A trained student as a detector of generated images and videos.

    import distil_cache as dc
    detector = dc.Detector.from_run("RUN")
    predictions = detector.predict(["a.jpg", "b.png"])

The models are loaded once and stay loaded. An image is decoded, its features are computed with the specs of the
student's training, and test transform and student are applied as in ``evaluate``, so the score equals that of an
evaluation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from ..choices import FRAMES, IMAGE_ALGORITHMS, METHOD, Precision, TestTransform
from ..errors import UsageError, UserError
from ..features.walk import WalkSpec
from ..images.file import Limits
from ..metrics.calibration import Calibration
from ..models.device import STUDENT_PRECISION, arithmetic, choose_device
from ..models.layout import move_network
from ..models.transfer import HostArray, HostCopy, one_behind, to_device
from ..pipeline.config import default_threads, wrong_option
from ..storage import AnyPath
from ..storage.pydantic_field import PathField
from ..train.data.augment import test_input
from ..train.evaluation.score import probability
from ..train.runs.folder import RunFolder, RunRecord
from ..train.runs.reference_checkpoint import read_checkpoint
from ..train.students.student import Student
from .decode import DecodedInput, InputDecoder, InputItem, Source
from .explain import SHOWN, Explainer
from .feature_specs import FeatureSpecs, read_feature_specs
from .features import FeatureMaker, StartedFeatures
from .find_adm import AdmRequest, find_adm_for_run
from .prediction import Frame, Prediction

MAX_FRAMES = 1024
DEFAULT_THRESHOLD = 0.5


class Options(BaseModel):
    """The options of a detector: the keyword arguments of its constructors.

    Attributes
    ----------
    threshold : float or None
        Scores above it mean generated. None takes the threshold that validation chose, else 0.5.
    transform : str
        Test transform, ``crop`` or ``resize``, as in ``evaluate``.
    adm : str or None
        File or name of the diffusion model. None finds the run's among the shipped and downloaded ones; for a student
        of the reference implementation it is the reference's.
    adm_config : Path or None
        JSON file with the guided-diffusion flags of the file ``adm``, if the run does not record them.
    class_label : str or None
        Choice of classes for a class-conditional model, if the run does not record it.
    sha256 : tuple of str
        What the SHA-256 of a downloaded ``adm`` must be.
    cache : path or None
        Cache of the run; needed only for runs of versions that did not record the specs of their features.
    weights_of : tuple of str
        ``FEATURE=FILE`` each: weights of the network of a feature, as a file or an address; by default the published
        ones. They must be those of the training.
    explain : Path or None
        New or empty folder for a PNG with image, eps and DIRE per image.
    frames : int
        Most frames sampled per video.
    device : str
        ``auto``, ``cpu`` or ``cuda:N``.
    precision : str or None
        Precision of the ADM; None is the run's.
    batch_size : int or 'auto'
        Images per ADM call.
    workers : int
        Decoding threads.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    threshold: float | None = Field(default=None, ge=0, le=1)
    transform: TestTransform = "crop"
    adm: str | None = None
    adm_config: Path | None = None
    class_label: str | None = None
    sha256: tuple[str, ...] = ()
    cache: PathField | None = None
    weights_of: tuple[str, ...] = ()
    explain: Path | None = None
    frames: int = Field(default=FRAMES, ge=1, le=MAX_FRAMES)
    device: str = "auto"
    precision: Precision | None = None
    batch_size: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    workers: int = Field(default_factory=default_threads, ge=1, le=256)

    @property
    def weights_by_feature(self) -> dict[str, str]:
        """``weights_of`` by feature. Raises UsageError for what has another form."""
        found = {}
        for text in self.weights_of:
            name, equals, file = text.partition("=")
            if not (name and equals and file):
                raise UsageError(f"--weights-of {text}: write FEATURE=FILE, such as embedding=resnet50.pth.")
            found[name] = file
        return found

    @classmethod
    def checked(cls, **values: object) -> Options:
        """Validate options.

        Raises
        ------
        UsageError
            Naming the first invalid option and the reason.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise wrong_option(error, "predict") from None


class Threshold(NamedTuple):
    """The score above which an image counts as generated, and where it comes from.

    Attributes
    ----------
    value : float
        In 0..1.
    origin : str
        ``given``, ``validation`` or ``default``.
    description : str
        The same as a phrase.
    transform : str or None
        Test transform under which validation chose it.
    withheld : bool
        Whether there is no verdict, because the student was no better than chance on its validation.
    """

    value: float
    origin: Literal["given", "validation", "default"]
    description: str
    transform: str | None = None
    withheld: bool = False

    @classmethod
    def of(cls, given: float | None, calibration: Calibration | None) -> Self:
        """Return the given threshold, else the one that validation chose, else 0.5."""
        if given is not None:
            return cls(given, "given", f"threshold {given:g}, as given")
        if calibration is None:
            description = f"threshold {DEFAULT_THRESHOLD}: the run has no calibrated one"
            return cls(DEFAULT_THRESHOLD, "default", description)
        value = calibration.threshold
        reached = f"balanced accuracy {calibration.balanced_accuracy:.1%}"
        description = f"threshold {value:.4g}, chosen on {calibration.origin} ({reached} there)"
        if calibration.beats_chance:
            return cls(value, "validation", description, calibration.transform)
        description += (
            f"; with {min(calibration.real, calibration.fake):,} images of the smaller class that may be chance, so no "
            "verdict is given. Train on more or other images, or give --threshold to have one anyway"
        )
        return cls(value, "validation", description, calibration.transform, withheld=True)


class _StartedGroup(NamedTuple):
    """Inputs whose images are going through the models.

    Attributes
    ----------
    group : sequence of DecodedInput
    pixels : ndarray of uint8, (N, 3, S, S)
        Their images.
    features : StartedFeatures or None
        None without an image.
    copy : HostCopy or None
        ``logit`` and, for explanations, the features, on their way to the host; None without an image.
    """

    group: Sequence[DecodedInput]
    pixels: HostArray
    features: StartedFeatures | None
    copy: HostCopy | None


class Detector:
    """Scores images and videos; made by :meth:`from_run` or :meth:`from_weights`.

    Attributes
    ----------
    record : RunRecord
        The run's record.
    threshold : Threshold
        Scores above ``threshold.value`` mean generated.
    options : Options
    device : torch.device
    feature_specs : FeatureSpecs
    maker : FeatureMaker
        Computes features; ``maker.calls`` is the number of ADM calls per image.
    decoder : InputDecoder
    notes : tuple of str
        What a reader of the scores must know, a phrase each.
    """

    def __init__(self, student: Student, record: RunRecord, threshold: Threshold, options: Options) -> None:
        self.record, self.threshold, self.options = record, threshold, options
        self.device = choose_device(options.device)
        self.feature_specs = read_feature_specs(record, options.cache)
        wanted = sorted({*record.method.inputs, *(SHOWN if options.explain else ())} - {"image"})
        asked = AdmRequest(options.adm, options.adm_config, options.class_label, options.sha256)
        adm = find_adm_for_run(self.feature_specs, self.feature_specs.needs_adm(wanted), asked)
        specs = self.feature_specs.specs(wanted, adm.identity if adm else None, options.precision)
        self.maker = FeatureMaker(specs, adm, self.device, options.batch_size, options.weights_by_feature)
        self.notes = _notes(self.feature_specs, record, threshold, options, self.maker)
        self.decoder = InputDecoder(self.feature_specs.image, Limits(), options.frames, options.workers)
        self._explainer = Explainer(options.explain) if options.explain else None
        self._student = move_network(student, self.device).eval()

    @classmethod
    def from_run(cls, run: Path | str, **options: Any) -> Self:
        """Load the best student of a run.

        Parameters
        ----------
        run : path
            Run folder.
        **options
            Fields of :class:`Options`.

        Raises
        ------
        UserError
            If the folder is not a run, or the ADM is not the run's or cannot be found.
        UsageError
            For an unknown or invalid option.
        """
        chosen = Options.checked(**options)
        best = RunFolder(Path(run)).load_student()
        return cls(best.student, best.record, Threshold.of(chosen.threshold, best.calibration), chosen)

    @classmethod
    def from_weights(cls, file: Path | str, method: str = METHOD, **options: Any) -> Self:
        """Load a student of the reference implementation, as ``checkpoint import`` does.

        Parameters
        ----------
        file : path
            ``.pth`` or ``.safetensors``.
        method : str
            ``distildire``, or ``eps`` for the reference's ``--only_eps``.
        **options
            Fields of :class:`Options`.

        Raises
        ------
        UserError
            If the file is damaged or holds another network, or the ADM cannot be found.
        UsageError
            For an unknown or invalid option.
        """
        chosen = Options.checked(**options)
        student, record = read_checkpoint(Path(file), method)
        return cls(student, record, Threshold.of(chosen.threshold, None), chosen)

    def predict(self, sources: Source | Iterable[Source]) -> list[Prediction]:
        """Score one or several inputs.

        Parameters
        ----------
        sources : Source or iterable of Source
            Paths, URLs, Pillow images, or uint8 arrays (H, W), (H, W, 3) or (H, W, 4).

        Returns
        -------
        list of Prediction
            In the order of the inputs. Inputs that cannot be used have a reason and no score.

        Raises
        ------
        UsageError
            If an input has another type.
        UserError
            If a model returns NaN or Inf.
        """
        return list(self.stream(sources))

    def stream(self, sources: Source | Iterable[Source]) -> Iterator[Prediction]:
        """Yield the predictions of :meth:`predict` batch by batch, so that memory does not grow with their number."""
        if isinstance(sources, str | AnyPath | Image.Image) or (isinstance(sources, np.ndarray) and sources.ndim < 4):
            sources = [sources]
        items: Iterable[InputItem] = (InputItem.of(number, source) for number, source in enumerate(sources, 1))
        images = None
        if isinstance(sources, Sequence | np.ndarray):
            items = list(items)
            images = sum(self.options.frames if item.video else 1 for item in items)
        size = self.maker.images_per_pass(images)
        with closing(self.decoder.decode(items, 2 * size)) as decoded:
            for started in one_behind(map(self._started, _groups(decoded, size)), self.device):
                yield from self._scored(started)

    def _started(self, group: Sequence[DecodedInput]) -> _StartedGroup:
        """Queue the models on the images of a few inputs, which go through them together; nothing waits for the device."""
        images = [image for decoded in group for image in decoded.images]
        if not images:
            return _StartedGroup(group, np.zeros((0, 0), np.uint8), None, None)
        pixels = np.stack(images)
        features = self.maker.start(pixels, [key for decoded in group for key in decoded.keys])
        rows = {"image": to_device(pixels, self.device), **features.rows}
        shown = features.rows if self._explainer else {}
        return _StartedGroup(group, pixels, features, HostCopy({**shown, "logit": self._logits(rows)}))

    def _scored(self, started: _StartedGroup) -> Iterator[Prediction]:
        """Wait for the scores of a group, and yield its predictions."""
        features: dict[str, HostArray] = {}
        logits = scores = np.zeros(0, np.float32)
        if started.features is not None and started.copy is not None:
            started.features.check()
            features = {"image": started.pixels, **started.copy.arrays()}
            logits = self._checked(features.pop("logit"))
            scores = probability(logits)
        start = 0
        for decoded in started.group:
            own = slice(start, start + len(decoded.images))
            own_features = {name: rows[own] for name, rows in features.items()}
            yield self._prediction(decoded, logits[own].tolist(), scores[own].tolist(), own_features)
            start = own.stop

    def _logits(self, rows: Mapping[str, Tensor]) -> Tensor:
        """Return the student's outputs for features on the device, (N,) float32, computed in batches of its training."""
        parts = []
        step = self.record.config.batch_size
        with torch.inference_mode(), arithmetic(STUDENT_PRECISION, self.device):
            for start in range(0, len(rows["image"]), step):
                batch = {name: rows[name][start : start + step] for name in self.record.method.inputs}
                x = test_input(
                    batch, self.record.method, self.record.train_size, self.options.transform, self.record.geometry
                )
                parts.append(self._student(x)[0])
            return torch.cat(parts)

    def _checked(self, logits: HostArray) -> HostArray:
        """Return the student's outputs; UserError if one is not finite."""
        if not np.isfinite(logits).all():
            raise UserError(f"run {self.record.run}: its student returns NaN or Inf. Train it again.")
        return logits

    def _prediction(
        self, decoded: DecodedInput, logits: Sequence[float], scores: Sequence[float], features: dict[str, HostArray]
    ) -> Prediction:
        item, rejected = decoded.item, decoded.rejected
        kind = "video" if item.video else "image"
        if rejected is not None:
            return Prediction(item.name, kind, reason=rejected.reason, detail=rejected.detail)
        explained = [self._explained(item, index, features) for index in range(len(scores))]
        score = float(np.mean(scores)) if item.video else scores[0]
        generated = None if self.threshold.withheld else score > self.threshold.value
        if not item.video:
            return Prediction(item.name, kind, score, logits[0], generated, explained=explained[0])
        frames = tuple(Frame(*frame) for frame in zip(decoded.seconds, scores, logits, explained, strict=True))
        return Prediction(item.name, kind, score, None, generated, max(scores), frames)

    def _explained(self, item: InputItem, index: int, features: dict[str, HostArray]) -> str | None:
        if self._explainer is None:
            return None
        frame = index if item.video else None
        return self._explainer.write(item.number, item.name, frame, {name: features[name][index] for name in SHOWN})


def _notes(
    feature_specs: FeatureSpecs, record: RunRecord, threshold: Threshold, options: Options, maker: FeatureMaker
) -> tuple[str, ...]:
    found = [threshold.description]
    if threshold.transform not in (None, options.transform):
        found.append(
            f"the threshold was chosen with the test transform {threshold.transform}; this is {options.transform}"
        )
    if feature_specs.assumption and maker.specs:
        found.append(feature_specs.assumption)
    if maker.adm_file is not None:
        found += maker.adm_file.notes
    algorithm = feature_specs.image.algorithm
    if algorithm != IMAGE_ALGORITHMS[0]:
        found.append(
            f"the student was trained on images decoded by the rules of algorithm {algorithm}; this version decodes by "
            f"those of algorithm {IMAGE_ALGORITHMS[0]}, and the changelog says for which images they differ"
        )
    perturb = feature_specs.image.perturb
    if perturb is not None:
        found.append(
            f"the student was trained on images perturbed by {perturb}, so each image is perturbed in the same way"
        )
    trained_in = {spec.precision for spec in feature_specs.features.values() if isinstance(spec, WalkSpec)} - {
        options.precision
    }
    if options.precision and trained_in and maker.specs:
        found.append(
            f"features are computed in {options.precision}; those of the training in {', '.join(sorted(trained_in))}"
        )
    if options.explain:
        found.append(f"DIRE for --explain takes {maker.calls} ADM calls per image")
    return (*found, *(() if record.imported else record.notes()))


def _groups(decoded: Iterable[DecodedInput], size: int) -> Iterator[list[DecodedInput]]:
    """Group inputs until they have as many images as go through the models at once."""
    group: list[DecodedInput] = []
    held = 0
    for item in decoded:
        group.append(item)
        held += len(item.images)
        if held >= size:
            yield group
            group, held = [], 0
    if group:
        yield group
