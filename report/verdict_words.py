"""The sentences of the verdict: what its numbers show, and no more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..metrics.clusters import FEW_CLUSTERS
from ..metrics.measures import Interval
from ..metrics.swap import Swap
from .audited import audited_data, shortcut_words
from .differences import Difference
from .inputs.runs import Run
from .verdict import (
    FEW_IMAGES,
    FEW_SEEDS,
    SEEN,
    UNKNOWN,
    UNSEEN,
    Effect,
    Pair,
    Place,
    Standing,
    Verdict,
    is_above,
    is_below,
)
from .wording import (
    bounds,
    command_line,
    generator_title,
    listed,
    percent,
    setting_title,
    shown_path,
    signed,
    signed_bounds,
)

_GROUPS = {UNSEEN: "Unseen generators", SEEN: "Seen generators", UNKNOWN: "Generators"}
_WHERE = {UNSEEN: "unseen", SEEN: "seen", UNKNOWN: "the tested"}
_MOST_NAMES = 4
_ONE_SEED = "one seed in common, so this holds for these trainings only"


@dataclass(frozen=True)
class Answer:
    """A question of the first screen, such as ``Unseen generators``, the answer in a few words, and its numbers."""

    question: str
    answer: str
    numbers: str


def answers(verdict: Verdict) -> list[Answer]:
    """Return the verdict as questions and answers, the most important first."""
    found = [standing_answer(standing) for standing in verdict.standings]
    if not found:
        reason = "No generator has real and generated images that every run was tested on."
        found.append(Answer("Result", "Nothing can be ranked", reason))
    asked = [pair_answer(verdict.pair)] if verdict.pair else []
    return [*asked, *found, distillation_answer(verdict.effects), shortcut_answer(verdict)]


def further_sentences(verdict: Verdict) -> list[str]:
    """Say in a sentence each how the configurations stand on the settings that the answers leave out."""
    settings = dict.fromkeys(one.setting for one in (*verdict.standings, *verdict.further))
    found = []
    for one in verdict.further:
        answer = standing_answer(one)
        found.append(f"{setting_title(one.setting, settings)}, {answer.question.lower()}: {answer.answer}.")
    return found


def standing_answer(standing: Standing) -> Answer:
    """Say which configuration is best on a group of generators, by how much, and whether that is more than chance."""
    best, *others = standing.places
    if not others:
        answer = f"{best.name} reaches AP {percent(best.ap.mean)}"
        numbers = f"AP {_value(best)}. No other configuration was tested in the same way."
    elif not standing.tied:
        answer = f"{best.name} is best, by {_points(others[0].behind)} of AP"
        numbers = f"AP {_value(best)}. {_lead(others[0])}."
    else:
        behind = f", ahead of {len(others) - len(standing.tied)} more" if len(standing.tied) < len(others) else ""
        answer = f"No single best: {_names([best.name, *(place.name for place in standing.tied)])} tie{behind}"
        numbers = f"{best.name} has the highest AP, {_value(best)}. {_doubt(standing.tied[0])}."
    if not best.beats_chance:
        answer += "; not shown to be better than chance"
        within = f", {bounds(best.auc_interval)}," if best.auc_interval else ""
        numbers += f" The interval of its AUC{within} does not lie above 50."
    return Answer(_GROUPS[standing.group], answer, f"{numbers} {_tested_on(standing)}")


def pair_answer(pair: Pair) -> Answer:
    """Say which of two sides is better, by AP."""
    by_outcome: dict[str, list[str]] = {}
    numbers = []
    for group, one in pair.differences.items():
        better = f"{pair.second} is better" if is_above(one) else f"{pair.first} is better" if is_below(one) else ""
        outcome = "not comparable" if one.interval is None else better or "no demonstrable difference"
        by_outcome.setdefault(outcome, []).append(_WHERE[group])
        within = f"95 % interval {_interval(one)}" if one.interval else "without an interval: other images were scored"
        numbers.append(
            f"On {_WHERE[group]} generators: {pair.second} minus {pair.first} is {signed(one.difference)} points of AP "
            f"({within}; {_over_seeds(one)})."
        )
    answer = "; ".join(f"{outcome} on {listed(where)} generators" for outcome, where in by_outcome.items())
    if not answer:
        answer, numbers = "not comparable", ["They share no test generator with real and generated images."]
    text = answer if answer.startswith((pair.first, pair.second)) else answer[0].upper() + answer[1:]
    return Answer(f"{pair.first} against {pair.second}", text, " ".join(numbers))


def distillation_answer(effects: Sequence[Effect]) -> Answer:
    """Say whether the distillation loss helps."""
    if not effects:
        return Answer("Distillation", "Not measured", "No two runs differ only in the distillation weight.")
    by_outcome: dict[str, list[str]] = {}
    for effect in effects:
        several = len({one.kd_weight for one in effects}) > 1
        where = f"{_WHERE[effect.standing.group]}{f' (weight {effect.kd_weight:g})' if several else ''}"
        by_outcome.setdefault(_outcome(effect), []).append(where)
    answer = "; ".join(f"{outcome} on {listed(where)} generators" for outcome, where in by_outcome.items())
    return Answer("Distillation", answer[0].upper() + answer[1:], " ".join(map(_effect, effects)))


def shortcut_answer(verdict: Verdict) -> Answer:
    """Say whether the files or the images give the label away, and where that was not examined."""
    answer, found = shortcut_words(verdict.runs)
    if verdict.unaudited:
        found.append(f"The evaluations of {listed(verdict.unaudited)} hold no audit.")
    tests = [(run.name, run.swap) for run in verdict.runs if run.swap]
    shares = [swap.carried for _, swap in tests if swap.carried is not None]
    if shares:
        most = f"{'up to ' if len(shares) > 1 else ''}{_whole(max(shares))} %"
        answer += f"; swap test: the files' history carries {most} of the verdict"
    return Answer("Shortcuts", answer, " ".join([*found, *(swap_sentence(name, swap) for name, swap in tests)]))


def swap_sentence(name: str, swap: Swap) -> str:
    """Say how much of a run's verdict the history of the files carries."""
    if swap.carried is None or swap.interval is None:
        return f"Swap test of {name} on {swap.dataset}: no result, since {swap.reason}."
    low, high = swap.interval
    return (
        f"Swap test of {name} on {swap.dataset}: {_whole(swap.carried)} % ({_whole(low)} to {_whole(high)}) of the distance "
        f"between the classes follows from the files' history; AUC {percent(swap.auc_own)}, and {percent(swap.auc_swapped)} "
        f"with the histories of the other class.{_one_history(swap)}"
    )


def _one_history(swap: Swap) -> str:
    """Say what the detector does on images that were all compressed alike; nothing if that was not measured."""
    one = swap.one_history
    if one is None:
        return ""
    change = f" (a change of {signed_bounds(Interval(*one.change))} points)" if one.change else ""
    return f" With all images compressed as {one.history}, the AUC is {percent(one.auc)}{change}."


def missing(verdict: Verdict) -> list[str]:
    """Return what is missing for a claim beyond these runs and images, a sentence each."""
    return [*_missing_tests(verdict), *_missing_trainings(verdict)]


def _missing_tests(verdict: Verdict) -> list[str]:
    groups = {one.group: one for one in verdict.standings}
    found = []
    if UNSEEN not in groups:
        found.append("No generator that is new to every run was tested, so nothing is known about other generators.")
    elif len(groups[UNSEEN].generators) == 1:
        found.append(f"Only one unseen generator was tested ({_shown(groups[UNSEEN].generators)}); others may differ.")
    if UNKNOWN in groups:
        found.append("The runs do not say which generators they were trained on.")
    if verdict.mixed:
        names = _names([generator_title(name) for name in verdict.mixed])
        found.append(f"Only some of the runs were trained on {names}; the verdict leaves such generators out.")
    small = min((one.fewest for one in verdict.standings), default=FEW_IMAGES)
    if small < FEW_IMAGES:
        found.append(f"The smallest test set has {small} images of a class; below {FEW_IMAGES}, intervals are wide.")
    units = min((one.fewest_units for one in verdict.standings if one.fewest_units < one.fewest), default=FEW_CLUSTERS)
    if units < FEW_CLUSTERS:
        found.append(
            f"The images of a class are in {units} clusters; intervals over fewer than {FEW_CLUSTERS} are too narrow."
        )
    if any(place.behind and place.behind.interval is None for one in verdict.standings for place in one.places):
        found.append("Not all runs scored the same images, so some differences have no interval.")
    found += [
        f"{one.dataset}: what remains in the images after --harmonize was not examined. Run: {one.audit_command}"
        for one in audited_data(verdict.runs)
        if one.unexamined
    ]
    away = [run for run in verdict.runs if any(one.given_away for one in audited_data([run]))]
    if untested := [run for run in away if run.swap is None]:
        each = " for each of them, such as" if len(untested) > 1 else ""
        found.append(
            f"{_names([run.name for run in untested])}: how much of the verdict the files' history carries was not "
            f"measured. Run{each}: {_swap_command(untested[0])}"
        )
    for name in verdict.unaudited:
        found.append(f"{name}: shortcuts were not searched for. Run: {_audit_command(name, verdict.runs)}")
    return found


def _swap_command(run: Run) -> str:
    """Return the command of the swap test of a run, on the dataset whose files give the label away."""
    found = [str(one.info["dataset"]) for one in run.evaluations if one.audit is not None and one.audit.found]
    own = str(run.get("dataset"))
    other = [] if own in found or not found else ["--dataset", found[0]]
    return command_line("audit", "--swap", shown_path(run.folder), *other)


def _audit_command(dataset: str, runs: Sequence[Run]) -> str:
    """Return the command that audits a dataset in the cache of a run that was evaluated on it."""
    tested = [run for run in runs if any(str(one.info["dataset"]) == dataset for one in run.evaluations)]
    cache = next((str(run.get("cache")) for run in tested if run.get("cache")), "CACHE")
    return command_line("audit", "--cache", cache, "--dataset", dataset)


def _missing_trainings(verdict: Verdict) -> list[str]:
    found = []
    seeds = min((len(place.runs) for one in verdict.standings for place in one.places), default=FEW_SEEDS)
    if seeds < FEW_SEEDS:
        found.append(
            f"{'One seed' if seeds == 1 else f'{seeds} seeds'} for at least one configuration: with fewer than {FEW_SEEDS}, "
            "how far another training would differ is not known."
        )
    blind = [run.name for run in verdict.runs if run.history and not run.get("imported") and not _validated(run)]
    if blind:
        found.append(
            f"{_names(blind)}: no validation images, so neither the checkpoint nor the threshold was validated."
        )
    return found


def _validated(run: Run) -> bool:
    return run.calibration is not None or any(line.get("val_ap") is not None for line in run.history)


def _tested_on(standing: Standing) -> str:
    return f"Tested on {_shown(standing.generators)}; at least {standing.fewest:,} images of each class."


def _value(place: Place) -> str:
    """Format the AP with its interval over images, and its spread over seeds if there are several."""
    within = f" ({bounds(place.interval)} over images)" if place.interval else ""
    spread = f", ± {percent(place.ap.spread)} over {len(place.runs)} seeds" if place.ap.spread is not None else ""
    return f"{percent(place.ap.mean)}{within}{spread}"


def _lead(rival: Place) -> str:
    """Say by how much the best configuration leads this one."""
    one = rival.behind
    assert one is not None
    return f"It leads {rival.name}, the next, by {_points(one)} (95 % interval {_interval(one)}; {_over_seeds(one)})"


def _doubt(rival: Place) -> str:
    """Say why the best configuration does not demonstrably lead this one."""
    one = rival.behind
    assert one is not None
    name = f"{rival.name} (AP {percent(rival.ap.mean)})"
    if one.difference is None or one.interval is None:
        return f"It cannot be compared with {name}: they scored different images"
    if one.interval.low <= 0 <= one.interval.high:
        return (
            f"Its lead over {name}, {_points(one)}, may be chance: the 95 % interval {_interval(one)} contains zero "
            f"({_over_seeds(one)})"
        )
    if one.seed_interval is not None and one.seed_interval.low <= 0 <= one.seed_interval.high:
        return (
            f"These images tell it from {name} by {_points(one)} ({_interval(one)}), but the seeds do not: "
            f"{_over_seeds(one)}"
        )
    if one.total_interval is not None and one.total_interval.low <= 0 <= one.total_interval.high:
        return (
            f"Its lead over {name}, {_points(one)}, may be chance: over images ({_interval(one)}) and over seeds "
            f"({signed_bounds(one.seed_interval or one.interval)}) together the 95 % interval is "
            f"{signed_bounds(one.total_interval)}"
        )
    return f"Over their common seeds it does not lead {name}: {_points(one)} ({_interval(one)})"


def _outcome(effect: Effect) -> str:
    """Say in a word or few what the distillation loss does."""
    one = effect.difference
    if one.interval is None:
        return "not comparable"
    if one.seeds < 2 and (is_above(one) or is_below(one)):
        return f"AP is {'higher' if is_above(one) else 'lower'} with it (one pair of trainings)"
    return "helps" if is_above(one) else "harms" if is_below(one) else "no demonstrable difference"


def _effect(effect: Effect) -> str:
    one = effect.difference
    head = f"On {_WHERE[effect.standing.group]} generators, weight {effect.kd_weight:g}"
    if one.difference is None:
        return f"{head} cannot be compared with none."
    within = f"95 % interval {_interval(one)}" if one.interval else "without an interval: other images were scored"
    return f"{head} changes AP by {signed(one.difference)} points ({within}; {_over_seeds(one)})."


def _over_seeds(one: Difference) -> str:
    others = (
        f", {one.left_out} {'run' if one.left_out == 1 else 'runs'} with other seeds left out" if one.left_out else ""
    )
    if one.seed_interval is not None and not one.unpaired:
        return f"over {one.seeds} seeds {signed_bounds(one.seed_interval)}{others}"
    if one.seed_interval is not None:
        return f"no seed in common; over the seeds of each {signed_bounds(one.seed_interval)}"
    return f"{_ONE_SEED}{others}" if one.seeds == 1 else "no seed in common"


def _interval(one: Difference) -> str:
    """Format the interval over images, with a digit more where one would round an end to zero."""
    assert one.interval is not None
    digits = 2 if min(map(abs, one.interval)) < 0.0005 else 1
    return " to ".join(f"{100 * end:+.{digits}f}" for end in one.interval).replace("-", "\N{MINUS SIGN}")


def _points(one: Difference | None) -> str:
    """Format a lead in percentage points."""
    return f"{percent(one.difference if one else None)} points".replace("-", "\N{MINUS SIGN}")


def _whole(share: float) -> str:
    return f"{100 * share:.0f}".replace("-", "\N{MINUS SIGN}")


def _shown(generators: Sequence[str]) -> str:
    return _names([generator_title(name) for name in generators])


def _names(names: Sequence[str]) -> str:
    """List some names, and count those beyond the first few."""
    if len(names) <= _MOST_NAMES:
        return listed(names)
    return f"{', '.join(names[:_MOST_NAMES])} and {len(names) - _MOST_NAMES} more"
