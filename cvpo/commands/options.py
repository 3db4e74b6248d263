"""Options and arguments that several commands have."""

from pathlib import Path
from typing import Annotated, Literal, get_args

import typer

MOST = 2**31 - 1  # of what is counted
LAST_SEED = 2**62 - 1  # torch's have 64 bits, and cvpo.seeds adds to it
MOST_CANDIDATES = 65_536  # a graph holds values of all of them

EnvId = Annotated[
    str, typer.Argument(metavar="ENV", help="Safety-Gymnasium task, registered Gymnasium id, or module:attribute.")
]
BundleOut = Annotated[
    Path, typer.Option(help="New folder for the bundle: .../NAME/VERSION, or .../NAME for version 1.")
]
CalibrateMode = Annotated[
    list[str],
    typer.Option(
        metavar="MODE",
        help="Calibrate for a further way of serving, too: sampled, or shielded:8 for 8 candidates. Repeat it for "
        "several. Bounds then hold in each of them, so they are those of the costliest.",
    ),
]
Confidence = Annotated[
    float,
    typer.Option(min=0.5, max=0.999, help="Probability with which cost_upper is to hold; 0.99 takes 198 episodes."),
]
MissRate = Annotated[
    float,
    typer.Option(
        min=0.001,
        max=0.5,
        help="Share of the sessions that exceed their budget, and not at once, that may have no flag in time.",
    ),
]
SignKey = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Sign it with this private key (cvpo keygen makes one).")
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")]
CostNames = Annotated[
    list[str], typer.Option("--cost", help="Key of info that holds a cost; once per cost. Default: the total, cost.")
]
EpisodeSteps = Annotated[
    int | None, typer.Option(min=1, help="Longest episode; needed where the environment has no time limit of its own.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Mode = Literal["deterministic", "sampled", "shielded"]
MODES: tuple[Mode, ...] = get_args(Mode)
Candidates = Annotated[int, typer.Option(min=2, max=MOST_CANDIDATES, help="Candidates of a shielded policy.")]
TlsCa = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Ask with TLS; PEM of who signed the server's certificate.")
]
TlsCertificate = Annotated[
    Path | None, typer.Option(metavar="FILE", help="PEM of your certificate, for a server that asks for one.")
]
TlsKey = Annotated[Path | None, typer.Option(metavar="FILE", help="PEM of its key.")]
BundleFolder = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder of a bundle.")]
TrustedKey = Annotated[
    list[Path],
    typer.Option(
        metavar="FILE_OR_FOLDER", help="Public key, or folder of *.pub, one of which must have signed it; repeatable."
    ),
]
