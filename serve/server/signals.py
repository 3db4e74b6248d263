"""What ends the process at once: SIGTERM or SIGINT while there is nobody to answer yet, and one more while it stops.

By handlers of our own: the first process of a container, which has the number 1, ignores a signal without one.
"""

import os
import signal

STOPPING = signal.SIGTERM, signal.SIGINT


def end_on_signal(*, clean: bool) -> None:
    """End the process at the next signal, whatever it is at.

    Args:
        clean: with status 0, for nothing is lost; else with 128 and the signal's number, as a shell would say it.
    """

    def end(number: int, frame: object) -> None:
        os._exit(0 if clean else 128 + number)

    for number in STOPPING:
        signal.signal(number, end)
