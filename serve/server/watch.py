"""Follows the folder of bundles: what is new is verified, loaded and served; what is bad is refused, visibly."""

import errno
import logging
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from cvpo.bundle import MANIFEST, Bundle, Manifest, TrustedKeys, read_bundle
from serve.errors import PlanError, RefusedBundleError, StartupError, UnavailableError
from serve.server.plan import ServingPlan, holds_bundle, plan_path, read_plan, write_plan
from serve.server.repository import PolicyVersions, Repository, Snapshot, follow
from serve.server.runtime import PolicyRuntime, load
from serve.server.telemetry import log

logger = logging.getLogger(__name__)

_DEPTH = 2  # REPOSITORY/NAME/VERSION
_LOST = "lost+found"  # at the root of a volume, and root's alone

# How long Python code in one thread keeps another waiting, while a bundle is loaded: some 15 ms of Python for one of
# 2.4 MB, of which an answer would otherwise wait for slices of 5 ms.
_SLICE_SECONDS = 0.0005

# Names, sizes and times of files: as long as it is the same, nothing was written.
Signature: TypeAlias = tuple[tuple[str | int, ...], ...]


@dataclass(frozen=True)
class _Found:
    """A folder that holds a bundle."""

    signature: Signature
    runtime: PolicyRuntime | None = None  # as it was verified, whatever happened to the folder since
    refused: str = ""  # why what is there now is not served
    settled: bool = False  # nothing more to try until the files change, or the twin is gone
    twin: Path | None = None  # the folder that has the same version, and is served instead


@dataclass(frozen=True)
class _Plan:
    """What is asked for of one policy."""

    signature: Signature
    plan: ServingPlan | None  # the last that could be read
    refused: str = ""  # why what is there now cannot
    settled: bool = True  # nothing more to read until the file changes
    missed: int | None = None  # the first look of those in a row that found no file
    lost: bool = False  # the file went together with the bundles: only one that can be read says what is asked for now


class Watcher:
    """Keeps a repository as its folder says. `poll` is one look; `start` has a thread of its own look again and again.

    Everything slow happens in the thread that looks, and a snapshot is replaced by one assignment, so whoever answers
    requests never waits for it.
    """

    def __init__(self, root: Path, *, allow_uncalibrated: bool, trusted: TrustedKeys | None = None) -> None:
        """Look at nothing yet.

        Args:
            root: the repository.
            allow_uncalibrated: serve bundles without calibration.
            trusted: serve only bundles that one of these keys signed; None: signatures are not looked at.
        """
        self.repository = Repository(Snapshot())
        self._root = root
        self._allow_uncalibrated = allow_uncalibrated
        self._trusted = trusted
        self._found: dict[Path, _Found] = {}
        self._plans: dict[str, _Plan] = {}
        self._looks = 0
        self._in_use: dict[tuple[str, int], weakref.ref[PolicyRuntime]] = {}  # by name and version
        self._unreadable: dict[Path, str] = {}  # why the repository, or a folder in it, cannot be read
        self._published = threading.Condition()
        self._wake = threading.Event()
        self._stopping = False

    def start(self, poll_seconds: float, published: Callable[[], object]) -> None:
        """Look again every so many seconds, until `stop`; `published` is called, in that thread, after each look."""

        def run() -> None:
            while True:
                self._wake.wait(poll_seconds)
                self._wake.clear()
                if self._stopping:
                    return
                try:
                    self.poll()
                    if not self._stopping:
                        published()
                except Exception as error:  # what is served goes on, and the next look may be luckier
                    log(logger, logging.ERROR, "looking at the repository failed", exception=error)

        threading.Thread(target=run, name="watch", daemon=True).start()

    def stop(self) -> None:
        """Look no more; a look that has begun ends by itself."""
        self._stopping = True
        self._wake.set()

    def gone(self) -> list[tuple[str, int]]:
        """Name and version of what is retired and used by nobody any more, each told once; not while it looks."""
        gone = [version for version, runtime in self._in_use.items() if runtime() is None]
        for version in gone:
            del self._in_use[version]
        return gone

    def planned(self, name: str, policy: PolicyVersions) -> PolicyVersions:
        """Return a policy under the plan that is written now, followed yet or not; as it is where there is none."""
        path = plan_path(self._root, name)
        if path is None:
            return policy
        try:
            return follow(policy.loaded, read_plan(path), policy.served)
        except (FileNotFoundError, PlanError):
            return policy

    def set_plan(self, name: str, plan: ServingPlan, timeout_seconds: float) -> PolicyVersions:
        """Write the plan of a policy, and return the policy once this process follows it.

        Raises:
            PlanError: it cannot be written.
            UnavailableError: it is written, but not followed in time.
        """
        write_plan(self._root, name, plan)
        self._wake.set()

        def followed() -> PolicyVersions | None:
            policy = self.repository.snapshot.policies.get(name)
            return policy if policy is not None and policy.plan == plan else None

        with self._published:
            policy = self._published.wait_for(followed, timeout_seconds)
        if policy is None:
            raise UnavailableError(
                f"The plan of {name!r} is written, but this server does not follow it yet, or another was written "
                "meanwhile. Ask what is served."
            )
        return policy

    def poll(self, *, first: bool = False) -> None:
        """Look at the folder once, and serve what is asked for now.

        A bundle that fails while its files still change is being copied: it is looked at again before it is refused.
        Bundles in a folder that cannot be read go on as they are.

        Args:
            first: take every file as it is, and refuse at once.

        Raises:
            StartupError: at the first look, the repository cannot be read; later what is served goes on.
        """
        self._looks += 1
        self._publish()  # plans before bundles: they take no time
        try:
            paths, unreadable = find_bundles(self._root)
        except StartupError as error:
            if first:
                raise
            paths, unreadable = [], {self._root: str(error)}
        for folder, reason in unreadable.items():
            if self._unreadable.get(folder) != reason:
                log(logger, logging.ERROR, "folder unreadable", path=str(folder), reason=reason)
        self._unreadable = unreadable
        unseen = (path for path in self._found if any(path.is_relative_to(folder) for folder in unreadable))
        present = frozenset((*paths, *unseen))
        for path in paths:
            if self._look(path, present, first) and not first:
                self._publish()
        self._found = {path: found for path, found in self._found.items() if path in present}
        self._publish()

    def require_policies(self) -> None:
        """Be content with any policy that can be served.

        Raises:
            StartupError: there is none; says why.
        """
        snapshot = self.repository.snapshot
        if snapshot.policies:
            return
        if len(snapshot.refused) == 1:
            ((path, reason),) = snapshot.refused.items()
            raise StartupError(f"Nothing to serve: {self._root / path} is refused. {reason}")
        refused = f"all {len(snapshot.refused)} bundles were refused (see the log)"
        what = refused if snapshot.refused else "it holds no bundle"
        raise StartupError(f"Nothing to serve in {self._root}: {what}. `cvpo export` writes a bundle.")

    def _look(self, path: Path, present: frozenset[Path], first: bool) -> bool:
        """Verify and load the bundle in a folder where its files are not those of last time; return whether it is new.

        Args:
            path: the folder.
            present: all folders that hold a bundle now.
            first: refuse at once.
        """
        before = self._found.get(path)
        signature = _sign(path)
        unchanged = (
            before is not None and before.signature == signature and (before.twin is None or before.twin in present)
        )
        if before is not None and unchanged and before.settled:
            return False
        runtime = None if before is None else before.runtime
        twin = None
        slice_seconds = sys.getswitchinterval()
        sys.setswitchinterval(_SLICE_SECONDS)
        try:
            bundle = read_bundle(path, self._trusted)
            if runtime is None:
                twin = self._find_twin(bundle.manifest, present)
                if twin is not None:
                    raise RefusedBundleError(
                        f"Policy {bundle.manifest.name!r} version {bundle.manifest.version} is already served from "
                        f"{twin}. Remove one of them."
                    )
                runtime = self._load(bundle)
                self._found[path] = _Found(signature, runtime, settled=True)
                served = runtime.served
                log(
                    logger,
                    logging.INFO,
                    "bundle loaded",
                    path=str(path),
                    policy=served.name,
                    version=served.version,
                    shares_runs=runtime.shares,
                )
                return True
            if bundle.manifest != runtime.manifest:
                raise RefusedBundleError(
                    f"It was loaded as version {runtime.served.version} of {runtime.served.name!r} and changed since. "
                    "Bundles are immutable: the one in memory goes on. Put the new one into a folder of its own, under "
                    "a new version."
                )
            self._found[path] = _Found(signature, runtime, settled=True)
        except Exception as error:  # whatever is wrong with one bundle, the others are looked at
            refused = (str(error) or repr(error)) if first or unchanged else ""
            settled = bool(refused) and not _may_pass(error)
            self._found[path] = _Found(signature, runtime, refused, settled, twin)
            if refused and (before is None or refused != before.refused):
                log(logger, logging.ERROR, "bundle refused", path=str(path), reason=refused)
        finally:
            sys.setswitchinterval(slice_seconds)
        return False

    def _find_twin(self, manifest: Manifest, present: frozenset[Path]) -> Path | None:
        """Return the folder whose bundle is loaded as the same version of the same policy."""
        for path, found in self._found.items():
            served = None if found.runtime is None else found.runtime.served
            if (
                served is not None
                and path in present
                and (served.name, served.version) == (manifest.name, manifest.version)
            ):
                return path
        return None

    def _load(self, bundle: Bundle) -> PolicyRuntime:
        if bundle.manifest.calibration is None and not self._allow_uncalibrated:
            raise RefusedBundleError(
                "It has no calibration, so nothing backs its predicted costs. Calibrate it, or start the server with "
                "--allow-uncalibrated to serve it with every answer flagged."
            )
        runtime = load(bundle)
        self._in_use[runtime.served.name, runtime.served.version] = weakref.ref(runtime)
        return runtime

    def _publish(self) -> None:
        """Replace the snapshot by what was found and is asked for."""
        before = self.repository.snapshot
        versions: dict[str, dict[int, PolicyRuntime]] = {name: {} for name in before.policies}
        for found in self._found.values():
            if found.runtime is not None:
                versions.setdefault(found.runtime.served.name, {})[found.runtime.served.version] = found.runtime
        policies = {}
        for name, loaded in sorted(versions.items()):
            old = before.policies.get(name)
            policy = self._follow(name, dict(sorted(loaded.items())), None if old is None else old.served)
            if policy.loaded:
                policies[name] = policy
            _log_changes(name, old, policy)
        refused = {path: found.refused for path, found in self._found.items() if found.refused}
        reasons = {
            _printable(str(path.relative_to(self._root))): _printable(reason)
            for path, reason in sorted((refused | self._unreadable).items())
        }
        with self._published:
            self.repository.snapshot = Snapshot(policies, reasons)
            self._published.notify_all()

    def _follow(self, name: str, loaded: dict[int, PolicyRuntime], before: PolicyRuntime | None) -> PolicyVersions:
        """Say what is served of a policy, by its plan as it is now, or as it was when it could last be read."""
        path = plan_path(self._root, name)
        if path is None:
            return follow(loaded, ServingPlan(), before)
        signature = _sign(path.parent, path.name)
        known = self._plans.get(name)
        if known is None or known.signature != signature or not known.settled:
            try:
                known = _Plan(signature, read_plan(path))
            except FileNotFoundError:
                known = self._miss(name, path, known)
            except PlanError as error:
                plan, lost = (None, False) if known is None else (known.plan, known.lost)
                known = _Plan(signature, plan, str(error), not isinstance(error.__cause__, OSError), lost=lost)
            self._plans[name] = known
        if known.plan is None:  # nobody knows which version was meant, and a guess may be the one that was pinned away
            return PolicyVersions(loaded, ServingPlan(), None, problem=f"{known.refused} Nothing is served until then.")
        policy = follow(loaded, known.plan, before)
        if known.refused:
            return replace(policy, problem=f"{known.refused} The plan before goes on. {policy.problem}".rstrip())
        return policy

    def _miss(self, name: str, path: Path, known: _Plan | None) -> _Plan:
        """Return what is asked for where there is no file: nothing, where it was taken away on purpose.

        That is believed at the second look in a row, for `rm -r` may have begun with the file, and only while a bundle
        of the policy is where it was. A repository that is moved or unmounted has none, and one that is copied back may
        have its bundles before its plans.
        """
        if known is None or known.plan == ServingPlan():
            return _Plan((), ServingPlan())
        if known.lost or not self._has_bundle(name):
            why = f"{path} is gone with the bundles. Put it back, or write {{}} into it to ask for nothing."
            return _Plan((), known.plan, why, lost=True)
        missed = self._looks if known.missed is None else known.missed
        if missed < self._looks:
            return _Plan((), ServingPlan())
        return _Plan((), known.plan, known.refused, settled=False, missed=missed)

    def _has_bundle(self, name: str) -> bool:
        """Whether a bundle of a policy is still where it was found."""
        folders = (path for path, found in self._found.items() if found.runtime and found.runtime.served.name == name)
        return any(map(holds_bundle, folders))


def _log_changes(name: str, old: PolicyVersions | None, new: PolicyVersions) -> None:
    """Log what changed for those who ask, and which versions are gone."""
    roles = _roles(new)
    if old is None or roles != _roles(old):
        log(logger, logging.INFO, "serving", policy=name, roles=roles)
    if new.problem and (old is None or old.problem != new.problem):
        log(logger, logging.ERROR, "plan not followed", policy=name, reason=new.problem)
    for version in () if old is None else old.loaded.keys() - new.loaded.keys():
        log(logger, logging.INFO, "version retired", policy=name, version=version)


def _roles(policy: PolicyVersions) -> dict[str, object]:
    """Return the version in each role, and the canary's share."""
    runtimes = {"version": policy.served, "canary": policy.canary, "shadow": policy.shadow}
    versions = {role: None if runtime is None else runtime.served.version for role, runtime in runtimes.items()}
    share = policy.plan.canary.share if policy.canary is not None and policy.plan.canary is not None else None
    return {**versions, "share": share}


def _may_pass(error: BaseException | None) -> bool:
    """Whether an error, or what it comes from, may pass although the files stay as they are: the machine's, not theirs.

    A file that is missing, or a link, is theirs.
    """
    while error is not None:
        if isinstance(error, MemoryError):
            return True
        if isinstance(error, OSError) and error.errno not in (errno.ENOENT, errno.ELOOP):
            return True
        error = error.__cause__ or error.__context__
    return False


def _printable(text: str) -> str:
    """Return text in which the bytes of a file's name that are not UTF-8 are spelt out: messages must be UTF-8."""
    return os.fsencode(text).decode(errors="backslashreplace")


def _sign(folder: Path, name: str | None = None) -> Signature:
    """Return what changes when the files of a folder do, or one of them; empty where it cannot be read."""
    try:
        paths = sorted(folder.iterdir()) if name is None else [folder / name]
        states = [(path.name, path.stat()) for path in paths]
    except OSError:
        return ()
    return tuple((name, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for name, s in states)


def find_bundles(root: Path) -> tuple[list[Path], dict[Path, str]]:
    """Return the bundles at or under `root`, at most two folders deep, and why a folder under it cannot be read.

    Names that begin with a dot are passed over, and so is `lost+found`.

    Raises:
        StartupError: there is no such folder, or it cannot be read.
    """
    unreadable: dict[Path, str] = {}
    bundles = list(_walk(root, _DEPTH, unreadable))
    if root in unreadable:
        raise StartupError(unreadable[root])
    if not root.is_dir():
        raise StartupError(f"{root} is not a folder. Name a bundle or a folder of bundles.")
    return bundles, unreadable


def _walk(folder: Path, depth: int, unreadable: dict[Path, str]) -> Iterator[Path]:
    """Yield the bundles, and write into `unreadable` why a folder cannot be read."""
    try:
        if not folder.is_dir():
            return
        if (folder / MANIFEST).exists():
            yield folder
            return
        children = sorted(folder.iterdir()) if depth > 0 else []
    except OSError as error:
        unreadable[folder] = f"Cannot read {folder}: {error.strerror}."
        return
    for child in children:
        if not child.name.startswith(".") and child.name != _LOST:
            yield from _walk(child, depth - 1, unreadable)


def load_repository(root: Path, *, allow_uncalibrated: bool, trusted: TrustedKeys | None = None) -> Repository:
    """Verify, load and warm up what is under `root` now; bundles that fail are logged and left out.

    Raises:
        StartupError: nothing is left to serve.
    """
    watcher = Watcher(root, allow_uncalibrated=allow_uncalibrated, trusted=trusted)
    watcher.poll(first=True)
    watcher.require_policies()
    return watcher.repository
