"""Apply what a client does to a running generation: the messages of Interact and the calls of Steer."""

from __future__ import annotations

from penstock_proto.v1 import generation_pb2 as pb

from penstock.errors import BadRequest, FieldViolation
from penstock.generation.control import GenerationControl

_ACTIONS = ("finish_thinking", "change_budget", "cancel")


def check_action(request: pb.InteractRequest | pb.SteerRequest) -> None:
    """Raise BadRequest for a request without an action, or with one that no generation can take."""
    action = request.WhichOneof("action")
    if action not in _ACTIONS:
        why = f"must be finish_thinking, change_budget or cancel, got {action or 'none'}"
        raise BadRequest(FieldViolation("action", why, "INVALID_FIELD" if action else "MISSING_FIELD"))
    budget = request.change_budget.thinking_budget
    if budget < -1:
        why = f"must be at least -1, got {budget}"
        raise BadRequest(FieldViolation("change_budget.thinking_budget", why, "INVALID_FIELD"))


def apply_action(control: GenerationControl, request: pb.InteractRequest | pb.SteerRequest, most: int) -> None:
    """Write the action of a request into the control, which candidates read at their next engine step.

    Args:
        control: Of the generation.
        request: A message of Interact after the first, or a call of Steer.
        most: Number of actions that one generation may be given. A cancel is not counted.

    Raises:
        BadRequest: The action is invalid, or one too many.
    """
    check_action(request)
    action = request.WhichOneof("action")
    if action == "cancel":
        control.cancel()
        return
    control.count_action(most)
    if action == "finish_thinking":
        control.finish_thinking = True
    else:
        control.thought_budget_tokens = request.change_budget.thinking_budget
