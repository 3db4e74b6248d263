"""Everything that can go wrong between a robot and its policy, each said in one sentence: what, where, what to do.

The server raises them, the client raises them again on its side; status codes are the business of
`serve.server.status` and `serve.client.status` alone. Stdlib only.
"""

RETRY_AFTER_SECONDS = 1.0  # by then a balancer or a restarted process answers, or the repository was looked at again


class PolicyServiceError(Exception):
    """No answer. The message is for a person; the class says what a program can do about it."""


class InvalidRequestError(PolicyServiceError):
    """A field of the request is wrong; the same request will never be answered.

    Attributes:
        field: path of the field in the request message, such as `situations[0].observation[3]`.
        description: what is wrong with it.
    """

    def __init__(self, field: str, description: str) -> None:
        super().__init__(field, description)  # what a copy in another process is made from
        self.field = field
        self.description = description

    def __str__(self) -> str:
        return f"{self.field}: {self.description}"


class NotFoundError(PolicyServiceError):
    """The server has no such policy or version; the message lists what it has.

    Attributes:
        field: path of the field in the request message that names it, such as `policy.version`; empty: not told.
        description: what is wrong with it.
    """

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message)
        self.field = field
        self.description = message

    def under(self, path: str) -> "NotFoundError":
        """The same, where the message that has the field stands at `path` in another."""
        return NotFoundError(self.description, self.field and path + self.field)


class FingerprintError(PolicyServiceError):
    """The served policy has other spaces, constraints or steps than the caller was built for."""


class SessionStateError(PolicyServiceError):
    """The state that a session should go on from is forged, stale, of another key, or of another opening."""


class HorizonError(PolicyServiceError):
    """The step is past the session's horizon; open a new session."""


class SupersededError(PolicyServiceError):
    """A newer step was already waiting and is answered instead; this one counts, and so does its cost."""


class UnavailableError(PolicyServiceError):
    """No server answers at the address, or it is stopping.

    Attributes:
        retry_after_seconds: when the server says it is worth asking again; None where it did not say.
    """

    def __init__(self, message: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class DeadlineExceededError(PolicyServiceError):
    """The answer did not come in time."""


class ResourceExhaustedError(PolicyServiceError):
    """The message is larger than the server takes, or more calls arrive at once than it takes.

    Attributes:
        retry_after_seconds: when the server says it is worth asking again; None where it did not say.
    """

    def __init__(self, message: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class InternalError(PolicyServiceError):
    """The server could not compute an answer that may be sent; its log has the details under the request id."""


class RefusedBundleError(PolicyServiceError):
    """A bundle is whole but cannot be served: its graphs do not fit its manifest, or it has no calibration."""


class PlanError(PolicyServiceError):
    """What is asked for of a policy's versions cannot be read, written or followed; the message says why."""


class StartupError(PolicyServiceError):
    """The server cannot start: nothing to serve, a port in use, or an address that would be unsafe."""
