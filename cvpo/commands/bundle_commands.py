"""The commands for a bundle as it lies on disk: what is in it, whether it may be trusted, and who says so."""

import json
from pathlib import Path
from typing import Annotated

import typer

from cvpo.commands.options import AsJson, BundleFolder, TrustedKey

app = typer.Typer()


@app.command(epilog="Example: cvpo inspect bundles/circle/1 --html circle.html")
def inspect(
    bundle: BundleFolder,
    as_json: AsJson = False,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="Write one page with pictures that needs no other file.")
    ] = None,
) -> None:
    """Show what a bundle is and how good it is.

    Where it comes from, what its policy earns and costs, and how far its predictions can be trusted. Checksums and
    graphs are verified; nothing of it is run. With --json: the manifest.
    """
    from cvpo.bundle import read_bundle
    from cvpo.commands.inspection import describe

    if html is not None and as_json:
        raise typer.BadParameter("--html writes a page and --json prints the manifest; give one of them.")
    read = read_bundle(bundle)
    if html is not None:
        from cvpo.commands.page import bundle_page

        page = bundle_page(read)
        html.parent.mkdir(parents=True, exist_ok=True)
        html.write_text(page, encoding="utf-8")
        typer.echo(html)
    elif as_json:
        typer.echo(json.dumps({**read.manifest.model_dump(mode="json"), "signed": read.signed}))
    else:
        typer.echo(describe(read))


@app.command(epilog="Example: cvpo verify bundles/circle/1 --trusted-key keys/release.pub")
def verify(bundle: BundleFolder, trusted_key: TrustedKey = []) -> None:  # noqa: B006  # typer copies it
    """Say whether a server would serve a bundle.

    By the server's own checks: every byte against its checksum, nothing missing and nothing more; the signature, where
    keys are given; graphs that hold only what our exporter writes, with bounded memory and work; and the golden
    request, answered here as it was at export. Then it measures how long a call of the policy takes here.
    """
    from cvpo.bundle import read_trusted_keys
    from cvpo.commands.inspection import plain
    from cvpo.exporting.verify import call_microseconds, processor, verify_bundle

    read = verify_bundle(bundle, read_trusted_keys(trusted_key) if trusted_key else None)
    manifest = read.manifest
    signed = "yes, by whom was not asked (--trusted-key)" if read.signed else "no"
    typer.echo(f"{bundle}: {plain(manifest.name)}, version {manifest.version}: verified")
    typer.echo(f"files      {len(manifest.files) + 1 + read.signed}, each as the manifest says, and none more")
    typer.echo(f"signed     {signed if read.signer is None else f'with the key of {read.signer}'}")
    typer.echo("graphs     inputs, outputs, operators, memory and work as our exporter writes them")
    count = len(read.golden.inputs["policy.onnx"]["observation"])
    typer.echo(f"golden     {count} situations answered as at export, within {manifest.golden_tolerance:g}")
    if manifest.calibration is None:
        typer.echo("calibrated NO: a server refuses it unless it is started with --allow-uncalibrated")
    weights = manifest.stored_weights.precision if manifest.stored_weights else "float32"
    typer.echo(
        f"latency    {call_microseconds(read):.0f} us a call with one observation, in a loop of them, with weights in "
        f"{weights} on {processor()}"
    )


@app.command(epilog="Example: cvpo diff bundles/circle/1 bundles/circle/2")
def diff(
    a: Annotated[Path, typer.Argument(metavar="A", help="Folder of a bundle.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Folder of another.")],
    as_json: AsJson = False,
) -> None:
    """Say what changed between two bundles.

    What they say of themselves, and how far they act and predict otherwise: both are asked about the observations that
    are stored in them, for deterministic actions. How often a shield would choose otherwise is counted apart.
    """
    from cvpo.commands.document import json_text
    from cvpo.commands.inspection import describe_difference
    from cvpo.exporting.difference import compare_bundles
    from cvpo.exporting.verify import verify_bundle

    difference = compare_bundles(verify_bundle(a, None), verify_bundle(b, None))
    typer.echo(json_text(difference.document()) if as_json else describe_difference(difference))


@app.command(epilog="Example: cvpo keygen keys/release")
def keygen(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="Where to write PATH.key and PATH.pub.")],
) -> None:
    """Make a pair of keys to sign bundles with (Ed25519).

    PATH.key signs, and is not encrypted: whoever has it can sign. PATH.pub says to servers whom to trust.
    """
    from cvpo.bundle import make_keys

    private, public = make_keys(path)
    typer.echo(f"{private}   keep it secret: cvpo sign BUNDLE --key {private}")
    typer.echo(f"{public}   for servers: cvpo serve bundles --trusted-keys {public}")


@app.command(epilog="Example: cvpo sign bundles/circle/1 --key keys/release.key")
def sign(
    bundle: BundleFolder,
    key: Annotated[Path, typer.Option(metavar="FILE", help="Private key in PEM form, without a passphrase.")],
) -> None:
    """Sign a bundle, as the one that was tested.

    It is verified first, as cvpo verify does. Nothing of it changes; the signature of its manifest, and so of all its
    files, is a file more.
    """
    from cvpo.bundle import read_private_key, sign_bundle
    from cvpo.exporting.verify import verify_bundle

    private = read_private_key(key)
    verify_bundle(bundle, None)
    sign_bundle(bundle, private)
    typer.echo(f"{bundle}: signed with {key}")
