"""Whether a bundle is what it says it is: the very checks of a server, that it makes before it serves one."""

from pathlib import Path

from cvpo.bundle import Bundle, TrustedKeys, read_bundle
from cvpo.errors import BundleError


def verify_bundle(path: Path, trusted: TrustedKeys | None) -> Bundle:
    """Read a bundle, verify all of it, load it, and ask its golden request.

    Raises:
        BundleError: a server would refuse it; says why.
    """
    from serve.errors import RefusedBundleError
    from serve.runtime import load

    bundle = read_bundle(path, trusted)
    try:
        load(bundle)
    except RefusedBundleError as error:
        raise BundleError(f"{path}: {error}") from error
    return bundle
