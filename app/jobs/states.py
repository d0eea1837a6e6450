"""The states of a job, and the transitions between them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """The state of a job."""

    PENDING = "pending"
    STORYBOARDING = "storyboarding"
    STORYBOARD_READY = "storyboard_ready"
    APPROVED = "approved"
    RENDERING = "rendering"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


TERMINAL = frozenset({Status.COMPLETED, Status.FAILED, Status.CANCELLED})
MOVING = frozenset(Status) - TERMINAL


@dataclass(frozen=True, slots=True)
class Transition:
    """A change of state.

    Attributes:
        name: its name in error messages.
        allowed: the states from which it may start.
        to: the state to which it leads.
        done: states in which it has already happened, so that a repetition changes nothing.
        external: True if it is allowed only for jobs with an external renderer.
    """

    name: str
    allowed: frozenset[Status]
    to: Status
    done: frozenset[Status] = frozenset()
    external: bool = False


_RENDERING = frozenset({Status.RENDERING})

BEGIN_STORYBOARD = Transition(
    "begin the storyboard",
    frozenset({Status.PENDING}),
    Status.STORYBOARDING,
    done=frozenset({Status.STORYBOARDING}),
)
FINISH_STORYBOARD = Transition(
    "finish the storyboard", frozenset({Status.STORYBOARDING}), Status.STORYBOARD_READY
)
APPROVE = Transition(
    "approve",
    frozenset({Status.STORYBOARD_READY}),
    Status.APPROVED,
    done=frozenset({Status.APPROVED, Status.RENDERING, Status.COMPLETED}),
)
RENDER = Transition(
    "render",
    frozenset({Status.APPROVED}),
    Status.RENDERING,
    done=frozenset({Status.RENDERING, Status.COMPLETED}),
)
CANCEL = Transition("cancel", MOVING, Status.CANCELLED, done=frozenset({Status.CANCELLED}))

# Reports of the service about its own renderings.
PROGRESS = Transition("report progress", _RENDERING, Status.RENDERING)
COMPLETE = Transition("complete", _RENDERING, Status.COMPLETED, done=frozenset({Status.COMPLETED}))
FAIL = Transition("fail", MOVING, Status.FAILED, done=frozenset({Status.FAILED}))

# Reports of external workers.
WORKER_PROGRESS = Transition("report progress", _RENDERING, Status.RENDERING, external=True)
WORKER_COMPLETE = Transition(
    "complete", _RENDERING, Status.COMPLETED, done=frozenset({Status.COMPLETED}), external=True
)
WORKER_FAIL = Transition(
    "fail", MOVING, Status.FAILED, done=frozenset({Status.FAILED}), external=True
)
