"""The `cvpo` command: runs the command line, and turns what a user can act on into one sentence and an exit code."""

import contextlib
import errno
import os
import signal
import sys
from collections.abc import Iterator

_SERVE_MODULES = ("typer", "rich", "pydantic", "pydantic_settings", "onnxruntime")
_TRAIN_MODULES = ("torch", "gymnasium", "scipy", "onnx", "mujoco", "matplotlib", "tensorboard", "safety_gymnasium")


def main() -> None:
    """Run `cvpo ARGUMENTS` and exit: 0, 1 after a failure, 2 after a wrong use, 130 after Ctrl-C, 143 after SIGTERM."""
    with _interrupted_by_signals() as received:
        code = _run()
        if received:
            print("cvpo: stopped.", file=sys.stderr)
            code = 128 + received[0]
    sys.exit(_printed(code))


@contextlib.contextmanager
def _interrupted_by_signals() -> Iterator[list[int]]:
    """Let SIGTERM, too, unwind what is going on, so that no process and no half-written file is left.

    Gives a list of those that did: the command line's own library makes an exit without a word of them.
    """
    received: list[int] = []

    def interrupt(number: int, _frame: object) -> None:
        received.append(number)
        raise KeyboardInterrupt

    ours = (signal.SIG_DFL, signal.default_int_handler)  # what a parent has it ignore stays ignored
    heard = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) in ours]
    for number in heard:
        signal.signal(number, interrupt)
    try:
        yield received
    finally:
        for number in heard:
            signal.signal(number, signal.SIG_DFL)  # one more, while Python exits, ends it without a traceback


def _run() -> int:
    from cvpo.errors import CvpoError

    try:
        from cvpo.commands.cli import app

        app(prog_name="cvpo", standalone_mode=True)
    except CvpoError as error:
        print(f"cvpo: {error}", file=sys.stderr)
        return 1
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        if error.filename is None:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            print(_incomplete(error), file=sys.stderr)
            return 1
        print(f"cvpo: {error.filename}: {error.strerror}. Check the path and its permissions.", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        module = (error.name or "").split(".")[0]
        if module not in (*_SERVE_MODULES, *_TRAIN_MODULES):
            raise
        if module in ("typer", "rich"):
            print(
                "cvpo: the command line needs an extra: cvpo[train] to learn and export, cvpo[serve] to serve and ask. "
                "The bare package is the robot's client, serve.client.",
                file=sys.stderr,
            )
            return 1
        extra = "train" if module in _TRAIN_MODULES else "serve"
        print(
            f"cvpo: this needs {module}, which is not installed. Install the extra it belongs to: "
            f"pip install 'cvpo[{extra}]' (in a checkout: make install).",
            file=sys.stderr,
        )
        return 1
    return 0


def _printed(code: int) -> int:
    """Print what waits to be; return the exit code, of a failure where that cannot be, silent if nobody reads it."""
    try:
        print(end="", flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is written at exit
        if code == 0 and not isinstance(error, BrokenPipeError):  # else it was told
            print(_incomplete(error), file=sys.stderr)
        return code or 1
    return code


def _incomplete(error: OSError) -> str:
    return f"cvpo: {error.strerror}: what was to be written is incomplete. Free space, or write elsewhere."


if __name__ == "__main__":
    main()
