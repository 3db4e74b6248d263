"""Figures as files. Import it before anything is drawn: it chooses how."""

import io
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")  # files only: a server has no display
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from cvpo.errors import ConfigError
from cvpo.files import write_file


def save(figure: Figure, out: Path) -> Path:
    """Write a picture, whole or not at all, and close the figure.

    Raises:
        ConfigError: the folder cannot be written, or the ending is not a kind of picture.
    """
    picture = io.BytesIO()
    try:
        figure.savefig(picture, dpi=120, format=out.suffix.removeprefix(".") or "png")
        out.parent.mkdir(parents=True, exist_ok=True)
        write_file(out, picture.getvalue())
    except (OSError, ValueError) as error:
        raise ConfigError(f"Cannot write the picture {out}: {error}. Choose another name or folder.") from error
    finally:
        plt.close(figure)
    return out
