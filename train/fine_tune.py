"""Beginning a training as the best student of another run, instead of with initial weights."""

from __future__ import annotations

from pathlib import Path

from ..errors import UserError
from .config import TrainConfig
from .run_folder import RunFolder
from .student import Student


def begin_as(student: Student, config: TrainConfig) -> dict[str, str]:
    """Give a student the weights of the best one of ``config.init_from``, and return which those are.

    The projection to the teacher is taken along where both have the same; the optimiser begins anew, with the learning
    rate that was asked for. UserError for a run of another network, or whose input is made otherwise.
    """
    source = RunFolder(Path(str(config.init_from)))
    learnt, record, facts = source.load_student()
    asked = f"--init-from {config.init_from}"
    if record.config.backbone != config.backbone:
        raise UserError(
            f"{asked}: its student is {record.config.backbone}, not {config.backbone}. Use the same --backbone."
        )
    if record.method.scales != config.definition.scales:
        theirs, ours = (
            ", ".join(f"{name} {scale}" for name, scale in method.scales.items())
            for method in (record.method, config.definition)
        )
        raise UserError(f"{asked}: its student sees {theirs}, this one {ours}. Use the same --method and --preset.")
    own = student.state_dict()
    taken = {
        name: value
        for name, value in learnt.state_dict().items()
        if not name.startswith("projection.") or (name in own and own[name].shape == value.shape)
    }
    student.load_state_dict({**own, **taken})
    return {"run": record.run, "epoch": facts["epoch"], "sha256": facts["sha256"]}
