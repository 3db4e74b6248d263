"""What a robot imports: PolicyClient, which asks a policy service and gets numpy arrays back.

It needs numpy, grpcio, protobuf and googleapis-common-protos, no more.

    with PolicyClient("127.0.0.1:50051", timeout_seconds=0.02) as policy:
        answer = policy.act(observation)
        robot.apply(answer.action)
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import grpc
from numpy.typing import ArrayLike

from serve.client import calls
from serve.client.calls import CLOSED, Call, R
from serve.client.channel import Addresses, Attempts, Dialer, Tls
from serve.client.control_client import ControlSession, RemoteControlSession
from serve.client.conversation import Conversation
from serve.client.watchdog import Watchdog
from serve.codec import seconds, vector
from serve.control_codec import decode_selector, encode_selector
from serve.control_values import Fallback, Horizon, Opening, PolicySelector, RollingWindow
from serve.errors import PolicyServiceError
from serve.gen.cvpo.v1.policy_pb2_grpc import PolicyServiceStub
from serve.values import ActResult, Deterministic, EvaluateActionResult, Mode, PolicyDescription


class PolicyCaller(ABC):
    """Asks a policy; how a request travels is its children's business."""

    def __init__(self, policy: str, version: int | None, fingerprint: str) -> None:
        self._selector = encode_selector(PolicySelector(policy, version, fingerprint))

    def act(
        self,
        observation: ArrayLike,
        *,
        steps_left: ArrayLike | None = None,
        cost_allowed: ArrayLike | None = None,
        mode: Mode = Deterministic(),  # noqa: B008  # frozen
    ) -> ActResult:
        """Ask for an action.

        Args:
            observation: [O], or [N, O] for N robots; in the order and units of training.
            steps_left: coming steps that the predictions speak of; one number, or [N]. None: the policy's window.
            cost_allowed: undiscounted cost allowed over those steps, [C] or [N, C]; infinity: unconstrained. None: the
                limit's share of those steps.
            mode: how the action is chosen.

        Returns:
            The action and what is predicted of it; without the axis N for a single observation.

        Raises:
            PolicyServiceError: there is no answer; see the class.
        """
        return self._ask(calls.act(self._selector, observation, steps_left, cost_allowed, mode))

    def evaluate_action(
        self,
        observation: ArrayLike,
        action: ArrayLike,
        *,
        steps_left: ArrayLike | None = None,
        cost_allowed: ArrayLike | None = None,
    ) -> EvaluateActionResult:
        """Ask what an action from elsewhere would cost: a planner's, a person's, another policy's.

        Args:
            observation: [O] or [N, O].
            action: [A] or [N, A], environment units, within the bounds.
            steps_left: as for act.
            cost_allowed: as for act.

        Raises:
            PolicyServiceError: there is no answer; see the class.
        """
        return self._ask(calls.evaluate_action(self._selector, observation, action, steps_left, cost_allowed))

    def list_policies(self) -> tuple[PolicyDescription, ...]:
        """Describe the served version of every policy, by name."""
        return self._ask(calls.list_policies())

    def get_policy(self) -> PolicyDescription:
        """Describe the policy that this object asks: spaces, constraints, calibration, safe action."""
        return self._ask(calls.get_policy(self._selector))

    def control(
        self,
        *,
        cost_budget: ArrayLike | None = None,
        extent: Horizon | RollingWindow | None = None,
        mode: Mode = Deterministic(),  # noqa: B008  # frozen
        max_age_seconds: float | None = None,
        fallback: Fallback = Fallback(),  # noqa: B008  # frozen
        watchdog: Watchdog = Watchdog(),  # noqa: B008  # frozen
    ) -> ControlSession:
        """Open a session for one robot's control loop.

        Args:
            cost_budget: undiscounted cost that may be spent over the extent, [C]; infinity: unconstrained. None: the
                policy's limits, in proportion to the steps.
            extent: how long the budget must last. None: a horizon as long as the policy's.
            mode: how actions are chosen.
            max_age_seconds: how old a step may be, on the server's clock, when its computation begins. None: as long as
                the watchdog waits.
            fallback: what is done instead of the policy's own action, and when.
            watchdog: how long to wait for the answer of a step, and what is done without one.

        Raises:
            PolicyServiceError: it cannot be opened; see the class.
        """
        opening = Opening(
            policy=decode_selector(self._selector),
            cost_budget=None if cost_budget is None else tuple(vector("cost_budget", cost_budget)),
            extent=extent,
            mode=mode,
            max_age_seconds=max_age_seconds,
            fallback=fallback,
        )
        return self._open(opening, watchdog)

    @abstractmethod
    def close(self) -> None:
        """Close the connections, where there are any; then ask no more."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @abstractmethod
    def _ask(self, call: Call[R]) -> R:
        """Bring a request to PolicyService and its answer back."""

    @abstractmethod
    def _open(self, opening: Opening, watchdog: Watchdog) -> ControlSession:
        """Open a session."""


class PolicyClient(PolicyCaller):
    """A policy service. Safe to use from several threads; close it, or use it in a `with` block."""

    def __init__(
        self,
        address: str | Sequence[str],
        policy: str = "",
        *,
        version: int | None = None,
        fingerprint: str = "",
        timeout_seconds: float = 0.5,
        tls: Tls | None = None,
    ) -> None:
        """Prepare to ask; the connection is made with the first call.

        Args:
            address: HOST:PORT or unix:PATH; or several, of servers that serve the same. The first is asked until it
                fails; then, at once, the next, which is asked from then on.
            policy: name of the policy; may be empty where the server has only one.
            version: None for the served one.
            fingerprint: of the policy this robot was built for, as get_policy tells it; another one is refused. Empty:
                not checked.
            timeout_seconds: of every call, over all the addresses it tries. The default bears a first connection on a
                busy machine; a control loop sets its own, below its period.
            tls: None: in the clear.

        Raises:
            InvalidRequestError: no address, a version or a time that is none, or a file of `tls` that cannot be read.
        """
        super().__init__(policy, version, fingerprint)
        self._timeout_seconds = seconds("timeout_seconds", timeout_seconds)
        self._addresses = Addresses(address)
        self._dialer = Dialer(tls)
        self._credentials = self._dialer.credentials()
        self._closed = False
        self._channels: list[grpc.Channel] = []  # made when first asked
        self._stubs: dict[str, PolicyServiceStub] = {}  # by address

    def close(self) -> None:
        self._closed = True
        for channel in self._channels:
            channel.close()

    def _ask(self, call: Call[R]) -> R:
        attempts = Attempts(self._addresses, self._timeout_seconds)
        for attempt in attempts:
            if self._closed:
                raise PolicyServiceError(CLOSED)
            try:
                stub = self._stub(attempt.address)
                response = getattr(stub, call.method)(call.request, timeout=attempt.timeout_seconds)
            except (grpc.RpcError, ValueError) as error:
                if self._closed:  # under this call, which fails with it; ValueError: before it began
                    raise PolicyServiceError(CLOSED) from error
                if not isinstance(error, grpc.RpcError):
                    raise
                if error.code() is grpc.StatusCode.UNAVAILABLE:
                    self._renew()
                attempts.failed(attempt, error)
            else:
                attempts.worked(attempt)
                return call.decode(response)
        raise AssertionError("the last attempt answers or raises")

    def _renew(self) -> None:
        """Have the next calls make new connections, if there are other credentials than those made until now have."""
        credentials = self._dialer.credentials()
        if credentials is not self._credentials:
            self._credentials, self._stubs = credentials, {}

    def _stub(self, address: str) -> PolicyServiceStub:
        stubs = self._stubs  # another thread may begin new ones
        if address not in stubs:
            channel = self._dialer.channel(address)
            self._channels.append(channel)
            stubs[address] = PolicyServiceStub(channel)  # type: ignore[no-untyped-call]  # generated
        return stubs[address]

    def _open(self, opening: Opening, watchdog: Watchdog) -> ControlSession:
        conversation = Conversation(opening, self.get_policy(), watchdog, self._addresses, self._timeout_seconds)
        session = RemoteControlSession(conversation, self._addresses, self._dialer)
        session.open(self._timeout_seconds)
        return session
