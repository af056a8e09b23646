"""What a training step asks of its device: no wait for a value, no copy from the host, channels innermost on CUDA.

No card is needed: steps run on the ``meta`` device and with fake CUDA tensors, whose every operation is looked at, and
the order of queueing and reading on a CPU that is told to behave like a card.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.cuda.amp.common as amp_common
from distil_cache.errors import StoppedError, UsageError, UserError
from distil_cache.models import transfer
from distil_cache.models.backbones import HALF, build_backbone
from distil_cache.models.layout import memory_layout, move_network
from distil_cache.progress import Silent
from distil_cache.signals import StopRequest
from distil_cache.train.config import TrainConfig
from distil_cache.train.data import augment
from distil_cache.train.data.augment import test_input as make_test_input
from distil_cache.train.data.dataset import Batch, FeatureDataset
from distil_cache.train.data.examples import ExampleBuilder, OnlineTeacher
from distil_cache.train.engine import loop
from distil_cache.train.engine.amp import MixedPrecision
from distil_cache.train.engine.distributed import ProcessGroup
from distil_cache.train.engine.loop import run_training
from distil_cache.train.engine.session import Session, make_optimiser
from distil_cache.train.evaluation.score import predict
from distil_cache.train.loss import losses
from distil_cache.train.runs.checkpoint import State, load_state, save_state
from distil_cache.train.students.pixels import PixelStudent
from distil_cache.train.students.student import Student
from fake_cuda import GPU as CUDA
from fake_cuda import CudaLog, fake_cuda, on_fake_cuda
from safetensors.torch import load_file
from small_cache import make_cache, rows
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import SGD
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

SETTINGS: dict[str, Any] = {"dataset": "pictures", "backbone": "small", "epochs": 2, "batch_size": 16, "lr": 1e-3}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "cache"
    make_cache(folder, [*rows("train", 24, {"adm": 20}), *rows("val", 6, {"adm": 6}), *rows("test", 2, {"adm": 2})])
    return folder


@pytest.fixture
def like_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the host queue one piece of work ahead on a CPU too."""
    monkeypatch.setitem(transfer.BEHIND, "cpu", 1)


def train(cache: Path, run: Path, **options: Any) -> dict[str, object]:
    changes = {name: options.pop(name) for name in list(options) if name in TrainConfig.model_fields}
    return run_training(TrainConfig.checked(**SETTINGS | changes), cache, run, device="cpu", **options)


def lines(run: Path) -> list[dict[str, float]]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in found]


def weights(run: Path) -> dict[str, Tensor]:
    newest = json.loads((run / "checkpoints" / "last.json").read_text())["weights"]
    return load_file(run / "checkpoints" / newest)


def assert_same(one: Path, other: Path) -> None:
    assert lines(one) == lines(other)
    ours, theirs = weights(one), weights(other)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_no_step_reads_its_own_losses_on_a_card_and_nothing_else_changes(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(cache, tmp_path / "plain")
    monkeypatch.setitem(transfer.BEHIND, "cpu", 1)
    events: list[str] = []
    queue, read = loop._StepQueue._queue, loop._read

    def queued(self: Any, batch: Batch) -> Any:
        step = queue(self, batch)
        events.append(f"queued {step.number}")
        return step

    def reading(step: Any, *rest: Any) -> Any:
        events.append(f"read {step.number}")
        return read(step, *rest)

    monkeypatch.setattr(loop._StepQueue, "_queue", queued)
    monkeypatch.setattr(loop, "_read", reading)
    train(cache, tmp_path / "ahead")
    epoch = ["queued 1", "queued 2", "read 1", "queued 3", "read 2", "read 3"]
    assert events[:6] == epoch
    assert events[6:] == [f"{what} {int(number) + 3}" for what, number in (event.split() for event in epoch)]
    assert_same(tmp_path / "plain", tmp_path / "ahead")


class StopAfter(Silent):
    """Asks the training to stop after some steps, as a signal does."""

    def __init__(self, steps: int, request: list[StopRequest]) -> None:
        self.steps, self.request = steps, request

    def advance(self, stage: str, units: int) -> None:
        self.steps -= units == SETTINGS["batch_size"]
        if self.steps == 0:
            self.request[0].set()


@pytest.mark.usefixtures("like_a_card")
@pytest.mark.parametrize(("steps", "saved"), [(1, (3, 3, 44)), (2, (5, 2, 32))])
def test_a_training_that_is_stopped_with_steps_in_flight_saves_all_of_them(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int, saved: tuple[int, int, int]
) -> None:
    requests: list[StopRequest] = []
    begin = loop._StepQueue.__init__

    def noted(self: Any, session: Session, model: nn.Module, state: State, stopped: StopRequest) -> None:
        requests.append(stopped)
        begin(self, session, model, state, stopped)

    monkeypatch.setattr(loop._StepQueue, "__init__", noted)
    with pytest.raises(StoppedError):
        train(cache, tmp_path / "stopped", progress=StopAfter(steps, requests))
    progress = json.loads((tmp_path / "stopped" / "checkpoints" / "last.json").read_text())["progress"]
    assert (progress["step"], progress["batch"], progress["samples"]) == saved
    train(cache, tmp_path / "stopped", resume=True)
    train(cache, tmp_path / "undisturbed")
    assert_same(tmp_path / "stopped", tmp_path / "undisturbed")


@pytest.mark.usefixtures("like_a_card")
def test_a_loss_that_is_no_number_is_noticed_a_step_later_and_its_own_step_and_feature_are_named(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    epoch = FeatureDataset.epoch
    keys: list[str] = []

    def spoilt(self: FeatureDataset, *arguments: Any) -> Iterator[Batch]:
        for number, batch in enumerate(epoch(self, *arguments), 1):
            if number == 2:
                batch.features["eps"][3, 0, 0, 0] = np.inf
                keys.append(self.table["key"][int(batch.rows[3])].as_py())
            yield batch

    before = train(cache, tmp_path / "run", epochs=1)
    monkeypatch.setattr(FeatureDataset, "epoch", spoilt)
    with pytest.raises(UserError, match=r"eps of image .* has values that are no finite numbers") as refused:
        train(cache, tmp_path / "spoilt")
    assert f"image {keys[0]} (shard " in str(refused.value)
    assert json.loads((tmp_path / "spoilt" / "checkpoints" / "last.json").read_text())["progress"]["step"] == 0
    assert before["steps"] == 3


@pytest.mark.usefixtures("like_a_card")
def test_the_step_whose_loss_is_no_number_is_named(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FeatureDataset, "not_finite", lambda *_: None)
    epoch = FeatureDataset.epoch

    def spoilt(self: FeatureDataset, *arguments: Any) -> Iterator[Batch]:
        for number, batch in enumerate(epoch(self, *arguments), 1):
            if number == 2:
                batch.features["eps"][:] = np.inf
            yield batch

    monkeypatch.setattr(FeatureDataset, "epoch", spoilt)
    with pytest.raises(UserError, match=r"the loss is no longer a finite number in epoch 1, step 2"):
        train(cache, tmp_path / "run")


class Watch(TorchDispatchMode):
    """Looks at every operation: none may read a value, and each must keep to a device and to channels innermost."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device, self.convolutions = device, 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = operation.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "nonzero", "is_nonzero", "equal"), name
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        assert all(tensor.device.type == self.device for tensor in tensors), name
        if name == "convolution" and self.device == "cuda":
            self.convolutions += 1
            for maps in args[:2]:
                assert maps.is_contiguous(memory_format=torch.channels_last), name
        return operation(*args, **(kwargs or {}))


class CaughtError(Exception):
    """Carries a session out of a training."""

    def __init__(self, session: Session) -> None:
        self.session = session


def session_of(cache: Path, run: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Session:
    def caught(session: Session, *_: Any) -> None:
        raise CaughtError(session)

    monkeypatch.setattr(loop, "_train", caught)
    with pytest.raises(CaughtError) as found:
        train(cache, run, **changes)
    return found.value.session


@pytest.mark.parametrize(
    "changes", [{}, {"accumulate": 2, "clip_grad": 1.0, "pos_weight": 2.0}, {"method": "cnndet", "amp": "bf16"}]
)
def test_a_whole_step_asks_the_device_for_no_value_and_copies_nothing_to_it(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    session = session_of(cache, tmp_path / "run", monkeypatch, **changes)
    batch = next(iter(session.batches(State()))).to(torch.device("meta"))
    windows = torch.zeros(len(batch.rows), dtype=torch.int64, device="meta")
    monkeypatch.setattr(augment, "to_device", lambda rows, device: windows)  # pinned, so the device does not wait
    student = session.student.to("meta")
    session = replace(session, student=student, optimiser=SGD(student.parameters(), lr=0.1))
    with Watch("meta"):
        step = loop._StepQueue(session, student, State(), StopRequest())._queue(batch)
    assert step.values._values["values"].shape == (4,)
    assert step.values._values["values"].is_meta
    assert all(parameter.grad is None for parameter in student.parameters())


def fake_batch(features: dict[str, tuple[int, ...]]) -> Batch:
    made = {name: torch.empty(4, *shape, dtype=torch.uint8, device=CUDA) for name, shape in features.items()}
    label, flip = torch.empty(4, device=CUDA), torch.empty(4, dtype=torch.bool, device=CUDA)
    return Batch(np.arange(4), label, flip, made, 4)


@pytest.mark.parametrize(
    ("changes", "backbone"),
    [
        ({}, "small"),
        ({}, "resnet50"),
        ({"teacher_online": True}, "small"),
        ({"preset": "official-code", "seed": 3}, "small"),  # with this seed, the batch is mixed
        ({"method": "cnndet"}, "small"),
    ],
)
def test_a_step_on_cuda_stays_there_and_its_maps_keep_their_channels_innermost(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], backbone: str
) -> None:
    config = TrainConfig.checked(**SETTINGS, **changes)
    definition = config.definition
    student, teacher = PixelStudent.of(backbone, 3 * len(definition.inputs), 128), build_backbone("small")
    with FakeTensorMode():
        monkeypatch.setattr(
            augment, "to_device", lambda rows, device: torch.empty(rows.shape, dtype=torch.int64, device=device)
        )
        on_fake_cuda(student, memory_layout(CUDA)).train()
        online = (
            OnlineTeacher(on_fake_cuda(teacher, memory_layout(CUDA)).eval(), 32, HALF, HALF, {})
            if "dire" in config.training_features
            else None
        )
        batch = fake_batch(dict.fromkeys(("image", "eps", "dire"), (3, 64, 64)))
        prepare = ExampleBuilder(definition, 32, config.seed, online, {})
        with Watch("cuda") as watch:
            example = prepare(batch, 1)
            with MixedPrecision("off", CUDA).forward():
                logit, features = student(example.x)
                mapped = student.projection(features)
            found = losses(logit, example.label, mapped, example.taught, 1.0, 2.0)
            assert (example.taught is None) == (online is None)
            assert torch.stack(found).device == CUDA
            student.eval()
            student(make_test_input(batch.features, definition, 32, "crop"))
        assert watch.convolutions > 5


def test_an_evaluation_stays_on_cuda_and_copies_by_pinned_memory_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Rows:
        """Two batches as the readers make them for CUDA."""

        geometry: ClassVar[dict[str, str]] = {"image": "image", "eps": "pixels"}

        def __len__(self) -> int:
            return 4

        def in_order(self, *_: Any) -> Iterator[Batch]:
            shape = (2, 3, 64, 64)
            for first in (0, 2):
                features = {
                    "image": torch.empty(shape, dtype=torch.uint8, pin_memory=True),
                    "eps": torch.empty(shape, dtype=torch.float16, pin_memory=True),
                }
                nothing: Any = None
                yield Batch(np.arange(first, first + 2), nothing, nothing, features, 2)

    method = TrainConfig.checked(**SETTINGS).definition
    with fake_cuda(monkeypatch), torch.no_grad():
        student = on_fake_cuda(PixelStudent.of("small", 3 * len(method.inputs)), memory_layout(CUDA))
        rows: Any = Rows()
        with CudaLog() as log:
            logits = predict(student, rows, method, size=32, transform="crop", batch_size=2, device=CUDA)
    assert logits.tolist() == [1.0] * 4
    assert (log.on_host, log.waits, log.reordered) == ([], [], [])
    assert log.tf32 == {(False, False)}
    assert log.copies == 2 * 3, "image, eps; logits"


def test_students_and_teachers_are_placed_with_channels_innermost_on_cuda_alone() -> None:
    class Noted(nn.Module):
        def to(self, *arguments: Any, **options: Any) -> Any:
            self.asked = arguments, options
            return self

    for device, layout in ((CUDA, torch.channels_last), (torch.device("cpu"), torch.contiguous_format)):
        assert move_network(Noted(), device).asked == ((device,), {"memory_format": layout})


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_the_update_on_cuda_is_one_kernel_that_asks_for_no_value(monkeypatch: pytest.MonkeyPatch, amp: Any) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    monkeypatch.setattr(amp_common, "amp_definitely_not_available", lambda: False)
    student = PixelStudent.of("small", 3)
    with FakeTensorMode():
        on_fake_cuda(student, memory_layout(CUDA))
        optimiser = make_optimiser(student, TrainConfig.checked(**SETTINGS), CUDA)
        for weight in student.parameters():
            weight.grad = torch.empty_like(weight)
        precision = MixedPrecision(amp, CUDA)
        precision._scaler.scale(torch.ones((), device=CUDA))  # backwards, autograd needs a card: `meta` stands in above
        with Watch("cuda"):
            precision.step(optimiser, student, clip_grad=1.0)
        assert all(group["fused"] for group in optimiser.param_groups)
        moments = [slots["exp_avg"] for slots in optimiser.state.values()]
        assert any(moment.dim() == 4 and not moment.is_contiguous() for moment in moments)


def test_the_moments_of_a_saved_state_take_the_layout_of_the_weights(tmp_path: Path) -> None:
    def made(layout: torch.memory_format) -> tuple[Student, torch.optim.Optimizer]:
        torch.manual_seed(0)
        student = PixelStudent.of("small", 3).to(memory_format=layout)  # type: ignore[call-overload]
        optimiser = make_optimiser(student, TrainConfig.checked(**SETTINGS), torch.device("cpu"))
        student({"x": torch.ones(2, 3, 32, 32)})[0].sum().backward()
        optimiser.step()
        return student, optimiser

    plain, saved = made(torch.contiguous_format)
    ranks = ProcessGroup(torch.device("cpu"))
    save_state(tmp_path, plain, saved, State(), run="r", random_state=ranks.random_state(), scaler={})
    student, optimiser = made(torch.channels_last)
    optimiser.param_groups[0]["fused"] = True
    load_state(tmp_path, student, optimiser)
    assert optimiser.param_groups[0]["fused"]
    for weight, before in zip(student.parameters(), plain.parameters(), strict=True):
        moments = optimiser.state[weight]
        assert moments["exp_avg"].stride() == moments["exp_avg_sq"].stride() == weight.stride()
        assert torch.equal(moments["exp_avg"], saved.state[before]["exp_avg"])
    optimiser.step()


@pytest.mark.parametrize(("amp", "capability", "refused"), [("bf16", (7, 5), True), ("bf16", (8, 0), False)])
def test_bfloat16_is_refused_by_a_card_without_it(
    monkeypatch: pytest.MonkeyPatch, amp: Any, capability: tuple[int, int], *, refused: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Some card")
    make: Callable[[], object] = lambda: MixedPrecision(amp, CUDA)  # noqa: E731
    if refused:
        with pytest.raises(UsageError, match="--amp bf16: Some card has no bfloat16 arithmetic"):
            make()
    else:
        make()
