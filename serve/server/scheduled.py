"""PolicyService on an event loop: what is small is answered in place or with others, what is large by a thread."""

import functools
import time
from collections.abc import Callable
from typing import TypeVar

from google.protobuf.message import Message

from serve.gen.cvpo.v1 import policy_pb2 as pb
from serve.gen.cvpo.v1.policy_pb2_grpc import PolicyServiceServicer
from serve.server.interceptors import Context, check_deadline, request_id
from serve.server.service import PolicyServicer
from serve.server.sharing import SharedRuns
from serve.server.workers import INLINE_ROWS, Workers

Q = TypeVar("Q", bound=Message)
A = TypeVar("A", pb.ActResponse, pb.EvaluateActionResponse)


class ScheduledPolicyServicer(PolicyServiceServicer):
    """PolicyServicer's answers, each in its turn."""

    def __init__(self, answers: PolicyServicer, workers: Workers, shared_runs: SharedRuns) -> None:
        self._answers = answers
        self._workers = workers
        self._shared_runs = shared_runs

    async def Act(self, request: pb.ActRequest, context: Context) -> pb.ActResponse:  # noqa: N802
        rows = len(request.situations) * max(1, request.shielded.candidates)
        if rows > 1:
            return await self._answer(self._answers.Act, request, context, rows)
        started = time.perf_counter()
        asked = self._answers.read_act(request, request_id(context))
        answer = self._answers.answer_act(asked, await self._shared_runs.answer(asked))
        self._answers.count_pace(answer.policy, time.perf_counter() - started)
        return answer

    async def EvaluateAction(  # noqa: N802
        self, request: pb.EvaluateActionRequest, context: Context
    ) -> pb.EvaluateActionResponse:
        return await self._answer(self._answers.EvaluateAction, request, context, len(request.situated_actions))

    async def ListPolicies(  # noqa: N802
        self, request: pb.ListPoliciesRequest, context: Context
    ) -> pb.ListPoliciesResponse:
        return self._answers.ListPolicies(request, None)

    async def GetPolicy(self, request: pb.GetPolicyRequest, context: Context) -> pb.GetPolicyResponse:  # noqa: N802
        return self._answers.GetPolicy(request, None)

    async def _answer(self, ask: Callable[[Q, str | None], A], request: Q, context: Context, rows: int) -> A:
        started = time.perf_counter()
        named = request_id(context)
        if rows <= INLINE_ROWS:
            answer = ask(request, named)
        else:
            answer = await self._workers.run(
                functools.partial(ask, request, named), functools.partial(check_deadline, context)
            )
        self._answers.count_pace(answer.policy, time.perf_counter() - started)
        return answer
