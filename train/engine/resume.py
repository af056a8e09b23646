"""Where a training begins, or goes on.

A training that stopped in the middle of an epoch goes on with the batches that it has not learnt. Which those are follows
from the order of the epoch, and the order from how the shards are cut: ``cache compact``, a repair, or another version of
this package may have changed it. Going on would then learn some samples twice and others never. So a state holds a digest
of its epoch's order, and an epoch whose order is another one now begins again, with the weights of its beginning.
"""

from __future__ import annotations

from ...errors import UserError
from ...progress import Progress
from ..runs.checkpoint import State, begin_epoch_again, load_state, read_progress, save_state
from ..runs.folder import RunFolder
from .session import Session


def resume(session: Session, folder: RunFolder, progress: Progress) -> State:
    """Put the newest saved state in its place and return where the training stands; each process must call this.

    A training that has no state yet saves its first one. Raises UserError for a damaged state, and if the processes do
    not see the same shards.
    """
    ranks = session.ranks
    differs = _order_differs(session, read_progress(folder.checkpoints) or State())
    if differs and ranks.first:
        begin_epoch_again(folder.checkpoints)
    ranks.wait()
    saved = load_state(folder.checkpoints, session.student, session.optimiser)
    if saved is None:
        state = State()
        save(session, folder, state)
        return state
    session.precision.load(saved.scaler)
    ranks.set_random_state(saved.random_state, session.config.seed)
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


def save(session: Session, folder: RunFolder, state: State) -> None:
    """Make the present state the newest one of the run; each process must call this."""
    random_state, scaler = session.ranks.random_state(), session.precision.state()
    if session.ranks.first:
        save_state(
            folder.checkpoints, session.student, session.optimiser, state, random_state=random_state, scaler=scaler
        )


def restarted_note(epoch: int) -> str:
    """Say that an epoch began again, and why."""
    return (
        f"epoch {epoch} began again, because its samples no longer come in the order in which it was stopped "
        "(shards were compacted or repaired, or the software changed). Going on would have learnt some of them twice."
    )


def unchecked_note(epoch: int) -> str:
    """Say that nothing proves the order of an epoch that went on."""
    return (
        f"epoch {epoch} went on from a state of an earlier version, which does not say in which order its samples came. "
        "If shards were compacted or repaired meanwhile, it learnt some samples twice and others never."
    )


def _order_differs(session: Session, known: State) -> bool:
    """Say whether the order of the unfinished epoch is another than the one that it was saved with.

    Raises UserError if several processes do not see the same order, in training or in validation: each of them has
    looked at the shards by itself.
    """
    ranks = session.ranks
    unfinished = known.batch > 0 and known.order != ""
    order = session.order(known) if unfinished or ranks.several else ""
    seen = f"{order} {session.val.storage_digest(session.config.batch_size) if ranks.several and session.val else ''}"
    if not ranks.agree(seen):
        raise UserError(
            "the processes see the cache's shards cut differently: they changed while the training started. "
            "Run the command again."
        )
    return unfinished and order != known.order
