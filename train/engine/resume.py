"""Where a training starts or resumes.

A training that stopped in the middle of an epoch resumes with the batches that it has not seen. Which those are
follows from the order of the epoch, and the order from the division into shards: ``cache compact``, a repair, or
another version of this package may have changed it. Resuming would then train on some samples twice and on others
never. So a state holds a digest of its epoch's order, and an epoch whose order has changed is restarted, with the
weights of its beginning.
"""

from __future__ import annotations

from ...errors import UserError
from ...progress import Progress
from ..runs.checkpoint import ValidationScores, damaged, load_state, read_progress, restart_epoch, save_state
from ..runs.folder import RunFolder
from ..runs.forms import State
from .session import Session


def resume(session: Session, folder: RunFolder, progress: Progress) -> State:
    """Restore the newest saved state and return where the training stands; every process must call this.

    A training without a state saves its first one.

    Raises
    ------
    UserError
        The state is damaged, or the processes do not see the same shards.
    """
    ranks = session.ranks
    differs = _order_differs(session, read_progress(folder.checkpoints) or State())
    if differs and ranks.first:
        restart_epoch(folder.checkpoints)
    ranks.wait()
    saved = load_state(folder.checkpoints, session.student, session.optimiser)
    if saved is None:
        state = State()
        save(session, folder, state)
        return state
    try:
        session.precision.load(saved.scaler)
        ranks.set_random_state(saved.random_state, session.config.seed)
    except Exception as error:  # what a record that somebody else wrote may lead to
        raise damaged(folder.checkpoints, error) from error
    state = saved.progress
    epoch, note = state.epoch + 1, ""
    if differs and not state.batch:
        note = restarted_note(epoch)
    elif state.batch and (differs or not state.order):
        note = unchecked_note(epoch)
        state.unchecked = sorted({*state.unchecked, epoch})
    if note and ranks.first:
        progress.say(f"{folder.folder}: {note}")
    return state


def save(session: Session, folder: RunFolder, state: State, scores: ValidationScores | None = None) -> None:
    """Save the present state as the newest one of the run; every process must call this.

    ``scores`` are those of a student that has just become the best one.
    """
    random_state, scaler = session.ranks.random_state(), session.precision.state()
    if session.ranks.first:
        save_state(
            folder.checkpoints,
            session.student,
            session.optimiser,
            state,
            run=session.record.run,
            random_state=random_state,
            scaler=scaler,
            scores=scores,
        )


def restarted_note(epoch: int) -> str:
    """Return the message that an epoch was restarted, and why."""
    return (
        f"epoch {epoch} was restarted, because the order of its samples has changed since it was stopped (shards were "
        "compacted or repaired, or the software changed). Resuming it would have trained on some of them twice."
    )


def unchecked_note(epoch: int) -> str:
    """Return the message that the order of a resumed epoch could not be verified."""
    return (
        f"epoch {epoch} was resumed from a state of an earlier version, without the order of its samples. "
        "If shards were compacted or repaired meanwhile, it trained on some samples twice and on others never."
    )


def _order_differs(session: Session, known: State) -> bool:
    """Return whether the order of the unfinished epoch differs from the saved one.

    Raises
    ------
    UserError
        The processes, each of which has read the shards itself, do not see the same order in training or in validation.
    """
    ranks = session.ranks
    unfinished = known.batch > 0 and known.order != ""
    order = session.order(known) if unfinished or ranks.several else ""
    orders = f"{order} {session.val.storage_digest(session.config.batch_size) if ranks.several and session.val else ''}"
    if not ranks.agree(orders):
        raise UserError(
            "the processes do not see the same shards in the cache: they changed while the training started. "
            "Run the command again."
        )
    return unfinished and order != known.order
