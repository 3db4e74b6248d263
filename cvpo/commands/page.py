"""A bundle as one HTML page: what its manifest says, with pictures, in a file that needs no other."""

import base64
import html
import io
from collections.abc import Iterator

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from cvpo.bundle import Bundle
from cvpo.commands import pictures
from cvpo.commands.inspection import describe, plain
from cvpo.errors import BundleError

_MOST_DRAWN = 1e300  # in a picture: an axis from -1e308 to 1e308 is longer than any float64

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
h1 { margin-bottom: 0 }
pre { background: #f5f5f5; padding: 1rem; white-space: pre-wrap; font-size: 13px; line-height: 1.45 }
img { max-width: 100% } figure { margin: 1.5rem 0 } figcaption { color: #555; font-size: 14px }
.warning { border-left: 4px solid #c60; padding-left: 1rem }
"""


def bundle_page(bundle: Bundle) -> str:
    """The page. Everything in it comes from the bundle, and nothing of a bundle is taken for HTML.

    Raises:
        BundleError: its manifest has values too large to be drawn.
    """
    manifest = bundle.manifest
    curve = [point.model_dump() for point in manifest.provenance.learning_curve]
    drawn = manifest.model_dump(include={"constraints", "evaluations", "calibration"})
    largest = max(_sizes([curve, drawn]))
    if largest > _MOST_DRAWN:
        raise BundleError(
            f"{bundle.path} has values of up to {largest:.3g}, too large for a picture. Read it without --html."
        )
    title = html.escape(f"{plain(manifest.name)}, version {manifest.version}")
    parts = [
        f"<h1>{title}</h1>",
        '<p class="warning">It is no safety-rated function (ISO 13849, IEC 61508). Keep an independent stop that works '
        "without it.</p>",
        f"<pre>{html.escape(describe(bundle))}</pre>",
    ]
    if manifest.provenance.learning_curve:
        parts.append(
            _figure(
                pictures.learning_curve(manifest),
                "Learning: return and cost of an episode of the deterministic policy at the checkpoints up to the "
                "exported one (dotted), means with their 95 % intervals, against the limit (line).",
            )
        )
    if manifest.evaluations:
        parts.append(
            _figure(
                pictures.costs(manifest),
                "Cost of an episode: single episodes (points; the height has no meaning), their mean (bar) with its "
                "95 % interval, mean of the worst tenth of the episodes (cross), and the limit (line), which is on "
                "the mean.",
            )
        )
    if manifest.calibration is not None:
        parts.append(
            _figure(
                pictures.trust(manifest.calibration, manifest.constraints),
                "On test episodes, by constraint. Left: share of steps whose cost stayed within cost_upper, "
                "where that bound is low and where it is high, against what is claimed. Middle: how often a budget was "
                "exceeded, against the probability that was said; on the diagonal both are the same. Right: sessions "
                "over budget that no flag announced in time, against what was meant, and steps of the others flagged. "
                "Shades and bars: 95 % intervals.",
            )
        )
        if any(result.example for result in manifest.calibration.results):
            parts.append(
                _figure(
                    pictures.episode_examples(manifest, manifest.calibration),
                    "Flags along an episode: the test episode that cost the most, with the limit for its budget. "
                    "Above: what was spent before each step. Below: the probability, said before the step, that more "
                    "will be spent than the budget. A step is flagged (shaded) where that is over the alarm level.",
                )
            )
    parts.append(
        _figure(
            pictures.answers(bundle),
            "The situations of the golden request: what the policy answered to each at export. Filled points raised a "
            "flag.",
        )
    )
    parts.append(f"<h2>Model card</h2><pre>{html.escape(bundle.model_card)}</pre>")
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _sizes(document: object) -> Iterator[float]:
    """Of all numbers in a document."""
    if isinstance(document, dict):
        document = tuple(document.values())
    if isinstance(document, list | tuple):
        for part in document:
            yield from _sizes(part)
    elif isinstance(document, int | float):
        yield abs(document)


def _figure(figure: Figure, caption: str) -> str:
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=110, metadata={"Software": None})
    plt.close(figure)
    picture = base64.b64encode(data.getvalue()).decode()
    text = html.escape(caption)
    return f'<figure><img alt="{text}" src="data:image/png;base64,{picture}"><figcaption>{text}</figcaption></figure>'
