"""The errors: what each carries, what it says, and what the command line exits with."""

from __future__ import annotations

import errno
import pickle

import pytest

from nexttouch import errors
from nexttouch.errors import (
    FeatureMissing,
    InvalidArgument,
    KernelError,
    LabError,
    NexttouchError,
    NodeUnavailable,
    NoSuchNode,
    NoSuchProcess,
    NotPermitted,
    TargetRefused,
)

EXAMPLES: dict[str, tuple[NexttouchError, str, int]] = {
    "InvalidArgument": (
        InvalidArgument("rate", "is -1, but has to be positive"),
        "rate is -1, but has to be positive",
        2,
    ),
    "NoSuchNode": (NoSuchNode(7, (0, 1)), "to names node 7, but this machine has nodes 0, 1", 2),
    "NodeUnavailable": (NodeUnavailable(3, "it is offline"), "node 3 cannot take pages: it is offline", 1),
    "FeatureMissing": (
        FeatureMissing("userfaultfd", "this user may not", "run as root"),
        "userfaultfd is not available: this user may not; run as root",
        1,
    ),
    "NoSuchProcess": (NoSuchProcess(5), "process 5 does not exist", 1),
    "NotPermitted": (NotPermitted(5, "it is root's"), "process 5 may not be touched: it is root's", 1),
    "TargetRefused": (TargetRefused(5, "it is traced"), "process 5 cannot be attached to: it is traced", 1),
    "KernelError": (KernelError("mbind", errno.EIO), "mbind: Input/output error (EIO)", 1),
    "LabError": (LabError("no QEMU"), "no QEMU", 1),
    "NexttouchError": (NexttouchError("anything"), "anything", 1),
}


def test_every_error_is_here() -> None:
    assert set(EXAMPLES) == set(errors.__all__)


@pytest.mark.parametrize("name", EXAMPLES)
def test_message_and_status(name: str) -> None:
    error, message, status = EXAMPLES[name]
    assert type(error).__name__ == name
    assert str(error) == message
    assert error.exit_code == status
    assert isinstance(error, NexttouchError)
    with pytest.raises(NexttouchError):
        raise error


def test_what_they_carry() -> None:
    assert InvalidArgument("rate", "is wrong").argument == "rate"
    node = NoSuchNode(7, (0, 1), argument="node")
    assert (node.node, node.nodes, node.argument) == (7, (0, 1), "node")
    assert str(NoSuchNode(1, (0,))) == "to names node 1, but this machine has node 0"
    unavailable = NodeUnavailable(3, "it is offline")
    assert (unavailable.node, unavailable.reason) == (3, "it is offline")
    missing = FeatureMissing("x", "y", "z")
    assert (missing.feature, missing.reason, missing.remedy) == ("x", "y", "z")
    ended = NoSuchProcess(5, "while it was attached to")
    assert (ended.pid, str(ended)) == (5, "process 5 ended while it was attached to")
    refusals: list[NotPermitted | TargetRefused] = [NotPermitted(5, "why"), TargetRefused(5, "why")]
    assert [(refusal.pid, refusal.reason) for refusal in refusals] == [(5, "why")] * 2


def test_kernel_errors_are_os_errors() -> None:
    error = KernelError("mbind", errno.EIO, "node 3")
    assert isinstance(error, OSError)
    assert (error.call, error.errno) == ("mbind", errno.EIO)
    assert str(error) == "mbind: Input/output error (EIO); node 3"
    assert str(KernelError("mbind", 4095)).endswith("(4095)")


@pytest.mark.parametrize("kind", [InvalidArgument, NoSuchNode])
def test_wrong_arguments_are_value_errors(kind: type) -> None:
    assert issubclass(kind, ValueError)
    assert issubclass(kind, InvalidArgument)


def test_what_the_machine_lacks_is_no_misuse() -> None:
    assert not issubclass(NodeUnavailable, InvalidArgument)


@pytest.mark.parametrize("name", EXAMPLES)
def test_they_travel_between_processes(name: str) -> None:
    """As a worker of a pool hands an error to whoever waits for its result."""
    error, message, _ = EXAMPLES[name]
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == message
    assert copy.__dict__ == error.__dict__
    assert getattr(copy, "errno", None) == getattr(error, "errno", None)
