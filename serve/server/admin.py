"""PolicyAdminService: tells what is served, and changes it by writing the plan that every server follows."""

import asyncio
import logging

from pydantic import ValidationError

from serve.errors import InvalidRequestError, NotFoundError, PlanError
from serve.gen.cvpo.v1 import admin_pb2 as pb
from serve.gen.cvpo.v1.admin_pb2_grpc import PolicyAdminServiceServicer
from serve.server.interceptors import Context, request_id
from serve.server.plan import Canary, ServingPlan
from serve.server.repository import PolicyVersions, follow
from serve.server.telemetry import log
from serve.server.watch import Watcher

logger = logging.getLogger(__name__)

# Writing takes milliseconds, and plans are followed before bundles are looked at; but a look may just have begun.
_FOLLOW_SECONDS = 10.0


class AdminServicer(PolicyAdminServiceServicer):
    """Changes one plan at a time."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher
        self._changing = asyncio.Lock()

    async def GetServing(self, request: pb.GetServingRequest, context: object) -> pb.GetServingResponse:  # noqa: N802
        snapshot = self._watcher.repository.snapshot
        policies = {request.name: self._find(request.name)} if request.name else snapshot.policies
        return pb.GetServingResponse(
            policies=[_encode(name, policy) for name, policy in policies.items()],
            refused=[pb.RefusedBundle(path=path, reason=reason) for path, reason in sorted(snapshot.refused.items())],
        )

    async def SetServing(self, request: pb.SetServingRequest, context: Context) -> pb.SetServingResponse:  # noqa: N802
        plan = _decode(request)
        async with self._changing:
            policy = await self._planned(request.name)
            then = _check(request.name, policy, plan)
            plan = policy.plan.followed_by(plan, served=_version(policy), then=then)
            return pb.SetServingResponse(policy=await self._change(request.name, plan, context))

    async def Rollback(self, request: pb.RollbackRequest, context: Context) -> pb.RollbackResponse:  # noqa: N802
        async with self._changing:
            policy = await self._planned(request.name)
            plan = policy.plan.rolled_back(served=_version(policy), loaded=frozenset(policy.loaded))
            if plan is None:
                raise PlanError(
                    f"There is nothing to roll {request.name!r} back to: no version that is loaded was served before "
                    "the present one, and none is lower. SetServing pins another; this server has "
                    f"{', '.join(map(str, policy.loaded))}."
                )
            return pb.RollbackResponse(policy=await self._change(request.name, plan, context))

    def _find(self, name: str) -> PolicyVersions:
        policies = self._watcher.repository.snapshot.policies
        policy = policies.get(name)
        if policy is None:
            raise NotFoundError(
                f"There is no policy {name!r}; this server has {', '.join(policies) or 'none'}.", "name"
            )
        return policy

    async def _planned(self, name: str) -> PolicyVersions:
        """Return what a change begins from: the plan that is written, which this server may not follow yet."""
        return await asyncio.to_thread(self._watcher.planned, name, self._find(name))

    async def _change(self, name: str, plan: ServingPlan, context: Context) -> pb.PolicyServing:
        """Write a plan and return the policy as it is once this server follows it.

        Ends when that is done, also where the caller has left: the next change waits for it.
        """
        changing = asyncio.ensure_future(self._write(name, plan, request_id(context)))
        try:
            return await asyncio.shield(changing)
        except asyncio.CancelledError:
            await asyncio.wait([changing])
            if not changing.cancelled() and (error := changing.exception()):
                log(logger, logging.WARNING, "plan not changed", policy=name, error=str(error))
            raise

    async def _write(self, name: str, plan: ServingPlan, named: str) -> pb.PolicyServing:
        """Change a plan for a request of this id; in a thread, for it waits."""
        changed = await asyncio.to_thread(self._watcher.set_plan, name, plan, _FOLLOW_SECONDS)
        log(
            logger,
            logging.INFO,
            "plan changed",
            policy=name,
            plan=plan.model_dump(exclude={"history"}, exclude_none=True),
            request_id=named,
        )
        return _encode(name, changed)


def _check(name: str, policy: PolicyVersions, plan: ServingPlan) -> int:
    """Refuse a plan that could not be followed now, and return the version that it serves.

    Raises:
        NotFoundError: it names a version that is not loaded.
        PlanError: it asks for what cannot be.
    """
    named = {
        "plan.pinned": plan.pinned,
        "plan.canary.version": None if plan.canary is None else plan.canary.version,
        "plan.shadow": plan.shadow,
    }
    for field, version in named.items():
        if version is not None and version not in policy.loaded:
            raise NotFoundError(
                f"Policy {name!r} has no version {version}; this server has {', '.join(map(str, policy.loaded))}. "
                "GetServing says which bundles are refused, and why.",
                field,
            )
    planned = follow(policy.loaded, plan, None)
    if planned.served is None or planned.problem:
        raise PlanError(planned.problem)
    return planned.served.served.version


def _decode(request: pb.SetServingRequest) -> ServingPlan:
    """Return the plan in a request.

    Raises:
        InvalidRequestError: names the field.
    """
    if not request.HasField("plan"):
        raise InvalidRequestError("plan", "is missing; an empty one asks for the highest version")
    plan = request.plan
    try:
        return ServingPlan(
            pinned=plan.pinned if plan.HasField("pinned") else None,
            canary=Canary(version=plan.canary.version, share=plan.canary.share) if plan.HasField("canary") else None,
            shadow=plan.shadow if plan.HasField("shadow") else None,
        )
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(["plan", *(["canary"] if error.title == "Canary" else []), *map(str, first["loc"])])
        raise InvalidRequestError(field, first["msg"]) from error


def _encode(name: str, policy: PolicyVersions) -> pb.PolicyServing:
    plan = pb.ServingPlan(pinned=policy.plan.pinned, shadow=policy.plan.shadow)
    if policy.plan.canary is not None:
        plan.canary.version, plan.canary.share = policy.plan.canary.version, policy.plan.canary.share
    return pb.PolicyServing(
        name=name, plan=plan, served=_version(policy) or 0, loaded=policy.loaded, problem=policy.problem
    )


def _version(policy: PolicyVersions) -> int | None:
    return None if policy.served is None else policy.served.served.version
