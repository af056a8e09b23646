"""A default that an option shares with the configuration behind it is the same in both."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import typer
from distil_cache.cache.export.webdataset import export_build
from distil_cache.cache.maintenance.compact import compact
from distil_cache.cache.maintenance.diff import diff
from distil_cache.cache.maintenance.gc import collect
from distil_cache.cli import app
from distil_cache.demo import run_demo
from distil_cache.inference.bench.run import BenchConfig, run_bench
from distil_cache.inference.detector import Detector, Options
from distil_cache.inference.predict import run_predict
from distil_cache.pipeline.audit.run import run_audit
from distil_cache.pipeline.build import run_builds
from distil_cache.pipeline.cluster.placement import Placement
from distil_cache.pipeline.config import BuildConfig, build_requests
from distil_cache.pipeline.cost import CostRequest
from distil_cache.pipeline.importing.import_config import ImportConfig
from distil_cache.pipeline.verify_sources import verify_sources
from distil_cache.report import write_report
from distil_cache.train.config import TrainConfig
from distil_cache.train.engine.loop import run_training
from distil_cache.train.evaluation.evaluate import run_evaluation, stored_summary
from distil_cache.train.runs.reference_checkpoint import export_checkpoint, import_checkpoint
from pydantic import BaseModel

NONE_HERE = object()
"""The default of a parameter that has none: it must be given."""
OUTPUT = {"as_json", "strict", "profile", "write_recipe"}
"""Options of the command alone: what it prints, its exit code, and where other options have their values from."""


@dataclass(frozen=True)
class Behind:
    """What a command calls.

    targets : models and functions whose parameters the options fill; the first that knows a name counts.
    renamed : option -> its name there. own : options that the command itself uses.
    open : options that are passed on only if they are given.
    """

    targets: tuple[Any, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    own: frozenset[str] | set[str] = frozenset()
    open: frozenset[str] | set[str] = frozenset()


BEHIND = {
    "build": Behind(
        (build_requests, run_builds, Placement.checked, CostRequest.checked, BuildConfig),
        {"form": "format", "compile_adm": "compile", "derived_name": "name", "set_fields": "set"},
    ),
    "train": Behind(
        (TrainConfig, run_training),
        own={"local_copy_gib", "sweep", "cache", "dry_run"},
        open=set(TrainConfig.model_fields),
    ),
    "evaluate": Behind(
        (run_evaluation, stored_summary),
        {"test_transform": "transform", "build_id": "build"},
        own={"local_copy_gib", "cache", "dataset"},
    ),
    "report": Behind((write_report,), own={"bench", "evaluate", "on", "device"}),
    "audit": Behind((run_audit, Options), own={"swap", "harmonize"}),
    "predict": Behind(
        (Options, Detector.from_weights, run_predict),
        {"test_transform": "transform"},
        own={"run", "weights", "form"},
        open={"workers"},
    ),
    "bench": Behind((BenchConfig, run_bench), {"method": "methods", "timing": "timed"}, open={"method"}),
    "demo": Behind((run_demo,)),
    "features": Behind(),
    "cache ls": Behind(),
    "cache diff": Behind((diff,)),
    "cache verify": Behind((verify_sources,), own={"repair", "labels", "columns", "path_prefix", "more_sources"}),
    "cache gc": Behind((collect,), {"yes": "delete_them", "grace": "grace_hours"}),
    "cache compact": Behind((compact,)),
    "cache export": Behind((export_build,), {"split": "splits"}),
    "cache import": Behind((ImportConfig,), {"form": "format"}),
    "checkpoint import": Behind((import_checkpoint,)),
    "checkpoint export": Behind((export_checkpoint,), own={"card"}),
}


def commands_of(group: typer.Typer, above: str = "") -> dict[str, Callable[..., None]]:
    """Return the function of each command by its full name, those of the groups included."""
    found = {above + (info.name or info.callback.__name__): info.callback for info in group.registered_commands}
    for inner in group.registered_groups:
        found |= commands_of(inner.typer_instance, f"{above}{inner.name} ")
    return found


COMMANDS = commands_of(app)


def settings_of(target: Any) -> dict[str, object]:
    """Return the default of each field of a model, or of each parameter of a function."""
    if isinstance(target, type) and issubclass(target, BaseModel):
        return {
            name: NONE_HERE if info.is_required() else info.get_default(call_default_factory=True)
            for name, info in target.model_fields.items()
        }
    return defaults_of(target)


def defaults_of(function: Callable[..., object]) -> dict[str, object]:
    empty = inspect.Parameter.empty
    parameters = inspect.signature(function).parameters.values()
    return {one.name: NONE_HERE if one.default is empty else one.default for one in parameters}


def plain(value: object) -> object:
    """No value, and none of several values, are the same to a command."""
    return None if value == () else value


def test_every_command_is_compared() -> None:
    assert set(BEHIND) == set(COMMANDS)


@pytest.mark.parametrize("name", BEHIND)
def test_no_default_of_an_option_differs_from_the_one_behind_it(name: str) -> None:
    behind = BEHIND[name]
    settings: dict[str, object] = {}
    for target in behind.targets:
        settings = {**settings_of(target), **settings}
    for option, default in defaults_of(COMMANDS[name]).items():
        if default is NONE_HERE or option in OUTPUT | behind.own:
            continue
        assert behind.renamed.get(option, option) in settings, f"{name}: what does --{option} fill?"
        setting = settings[behind.renamed.get(option, option)]
        if option in behind.open:
            assert default is None or default is False, f"{name} --{option}: a default that is not passed on"
        elif setting is not NONE_HERE:
            assert plain(default) == plain(setting), f"{name} --{option}"


def test_the_defaults_that_the_help_of_train_shows_are_those_of_the_configuration() -> None:
    hints = get_type_hints(COMMANDS["train"], include_extras=True)
    for name, setting in settings_of(TrainConfig).items():
        if name == "custom":  # the content of the file that --method names
            continue
        shown = hints[name].__metadata__[0].show_default
        if setting is NONE_HERE or plain(setting) is None or setting is False:
            assert not isinstance(shown, str), f"--{name} has no default of its own to show"
        else:
            assert shown == (f"{setting:g}" if isinstance(setting, float) else str(setting)), name


def choices_of(hint: object) -> set[object]:
    """Return the values of the Literals in a type such as ``Annotated[Preset | None, ...]``."""
    if get_origin(hint) is Literal:
        return set(get_args(hint))
    return {value for part in get_args(hint) for value in choices_of(part)}


@pytest.mark.parametrize("name", BEHIND)
def test_an_option_takes_the_choices_of_the_field_that_it_fills(name: str) -> None:
    models = [one for one in BEHIND[name].targets if isinstance(one, type) and issubclass(one, BaseModel)]
    fields = {field: info.annotation for model in models for field, info in model.model_fields.items()}
    hints = get_type_hints(COMMANDS[name])
    for option, hint in hints.items():
        field = BEHIND[name].renamed.get(option, option)
        if choices_of(hint) and field in fields and choices_of(fields[field]):
            assert choices_of(hint) == choices_of(fields[field]), f"{name} --{option}"
