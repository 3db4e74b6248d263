"""Versioned bundles in a folder: find them, verify them, load them, and say which one a request means."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cvpo.bundle import MANIFEST, read_bundle
from cvpo.errors import BundleError
from serve.errors import FingerprintError, NotFoundError, RefusedBundleError, StartupError
from serve.runtime import PolicyRuntime, load
from serve.telemetry import log

logger = logging.getLogger(__name__)

_DEPTH = 2  # REPOSITORY/NAME/VERSION


@dataclass(frozen=True)
class Repository:
    """What is served: of each policy, by name, its versions in ascending order."""

    policies: dict[str, dict[int, PolicyRuntime]]

    def select(self, name: str, version: int | None, fingerprint: str) -> PolicyRuntime:
        """Return the policy that a request means.

        Args:
            name: may be empty where there is only one policy.
            version: None for the served one, the highest.
            fingerprint: what the caller was built for; empty where it does not say.

        Raises:
            NotFoundError: no such policy or version; lists those that exist.
            FingerprintError: the policy has another fingerprint.
        """
        if not name and len(self.policies) == 1:
            (name,) = self.policies
        versions = self.policies.get(name)
        if versions is None:
            asked = f"There is no policy {name!r}" if name else "The request names no policy"
            raise NotFoundError(f"{asked}; this server has {', '.join(sorted(self.policies))}.")
        runtime = versions.get(next(reversed(versions)) if version is None else version)
        if runtime is None:
            raise NotFoundError(
                f"Policy {name!r} has no version {version}; this server has {', '.join(map(str, versions))}."
            )
        if fingerprint and fingerprint != runtime.served.fingerprint:
            raise FingerprintError(
                f"Policy {name!r} version {runtime.served.version} has the fingerprint {runtime.served.fingerprint}, "
                f"not {fingerprint}: its spaces or constraints are not those the caller was built for."
            )
        return runtime


def find_bundles(root: Path) -> list[Path]:
    """Return the bundles at or under `root`, at most two folders deep; names that begin with a dot are passed over.

    Raises:
        StartupError: there is no such folder, or it cannot be read.
    """
    try:
        if not root.is_dir():
            raise StartupError(f"{root} is not a folder. Name a bundle or a folder of bundles.")
        return list(_walk(root, _DEPTH))
    except OSError as error:
        raise StartupError(f"Cannot read {error.filename or root}: {error.strerror}.") from error


def _walk(folder: Path, depth: int) -> Iterator[Path]:
    if (folder / MANIFEST).exists():
        yield folder
    elif depth > 0:
        for child in sorted(folder.iterdir()):
            if child.is_dir() and not child.name.startswith("."):
                yield from _walk(child, depth - 1)


def load_repository(root: Path, *, allow_uncalibrated: bool) -> Repository:
    """Verify, load and warm up every bundle under `root`; those that fail are logged and left out.

    Raises:
        StartupError: nothing is left to serve.
    """
    found: dict[tuple[str, int], PolicyRuntime] = {}
    paths = find_bundles(root)
    reasons: list[str] = []
    for path in paths:
        try:
            runtime = _load(path, allow_uncalibrated)
            key = (runtime.served.name, runtime.served.version)
            if key in found:
                raise RefusedBundleError(
                    f"Policy {key[0]!r} version {key[1]} is already served from another folder. Remove one of them."
                )
        except (BundleError, RefusedBundleError) as error:
            reasons.append(str(error))
            log(logger, logging.ERROR, "bundle refused", path=str(path), reason=str(error))
        else:
            found[key] = runtime
            log(logger, logging.INFO, "bundle loaded", path=str(path), policy=key[0], version=key[1])
    if not found:
        if len(reasons) == 1:
            raise StartupError(f"Nothing to serve: {paths[0]} is refused. {reasons[0]}")
        what = f"all {len(paths)} bundles were refused (see the log)" if paths else "it holds no bundle"
        raise StartupError(f"Nothing to serve in {root}: {what}. `cvpo export` writes a bundle.")
    policies: dict[str, dict[int, PolicyRuntime]] = {}
    for (name, version), runtime in sorted(found.items(), key=lambda item: item[0]):
        policies.setdefault(name, {})[version] = runtime
    return Repository(policies)


def _load(path: Path, allow_uncalibrated: bool) -> PolicyRuntime:
    bundle = read_bundle(path)
    if bundle.manifest.calibration is None and not allow_uncalibrated:
        raise RefusedBundleError(
            "It has no calibration, so nothing backs its predicted costs. Calibrate it, or start the server with "
            "--allow-uncalibrated to serve it with every answer flagged."
        )
    return load(bundle)
