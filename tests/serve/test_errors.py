"""Errors as values: they go from one process to another."""

import pickle

import pytest

from serve.errors import (
    HorizonError,
    InvalidRequestError,
    NotFoundError,
    PolicyServiceError,
    ResourceExhaustedError,
    UnavailableError,
)


@pytest.mark.parametrize(
    "error",
    [
        InvalidRequestError("step.observation[0]", "is nan; it must be finite"),
        NotFoundError("there is no policy 'nope'", "policy.name"),
        UnavailableError("no server answers", 1.5),
        ResourceExhaustedError("too many calls", 0.5),
        HorizonError("the session is over"),
    ],
)
def test_an_error_of_a_worker_process_arrives_as_it_was_raised(error: PolicyServiceError) -> None:
    arrived = pickle.loads(pickle.dumps(error))  # as multiprocessing does: one that cannot be read hangs its pool
    assert type(arrived) is type(error)
    assert str(arrived) == str(error)
    assert vars(arrived) == vars(error)
