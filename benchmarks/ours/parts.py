"""Where the time of one update goes, against what its arithmetic takes at this core's peak.

The learner is timed as it is: the functions that it calls one after the other mark where a part ends.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch

from benchmarks.contestant import answer_rounds
from benchmarks.ours.learner import Ours
from benchmarks.workload import Workload
from cvpo.learning import learner
from cvpo.learning.critics import critic_loss
from cvpo.learning.critics import follow as critics_follow
from cvpo.learning.networks import Critics
from cvpo.training.device import prepare_processor

# In the order of an update; each ends where the next begins.
PARTS = (
    "sample the batch",
    "behavior policy, sampled actions",
    "target critics, K actions a state",
    "targets",
    "E-step: dual and weights",
    "policy: forward and loss",
    "critics: forward and loss",
    "backward, Adam",
    "target critics follow",
    "metrics",
)


class Parts:
    """Seconds of the core spent in each part, between marks set by what the learner calls."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.last = time.process_time()

    def end(self, part: str) -> None:
        """All time since the last mark was of this part."""
        now = time.process_time()
        self.seconds[part] += now - self.last
        self.last = now

    def around(self, function: Callable[..., Any], before: str, inside: str) -> Callable[..., Any]:
        """The function, with the time until its call counted as `before`, and its own as `inside`."""

        def marked(*arguments: Any) -> Any:
            self.end(before)
            result = function(*arguments)
            self.end(inside)
            return result

        return marked


def measure(ours: Ours, updates: int) -> dict[str, float]:
    """Milliseconds of each part, mean over so many updates; their sum is the update."""
    (sample, behave, evaluate, targets, estep, policy, critics, backward, follow, metrics), parts = PARTS, Parts()
    with (
        mock.patch.object(Critics, "evaluate", parts.around(Critics.evaluate, behave, evaluate)),
        mock.patch.object(learner, "_solve", parts.around(learner._solve, targets, estep)),
        mock.patch.object(learner, "_weights", parts.around(learner._weights, estep, estep)),
        mock.patch.object(Critics, "forward", parts.around(Critics.forward, policy, critics)),
        mock.patch.object(learner, "critic_loss", parts.around(critic_loss, critics, critics)),
        mock.patch.object(learner, "follow", parts.around(critics_follow, backward, follow)),
        mock.patch.object(ours.replay, "sample", parts.around(ours.replay.sample, metrics, sample)),
    ):
        parts.last = time.process_time()
        for _ in range(updates):
            ours.update()
        parts.end(metrics)
    return {part: 1000 * seconds / updates for part, seconds in parts.seconds.items()}


def arithmetic(workload: Workload) -> dict[str, float]:
    """Multiplications and additions in the matrix products of one update, in GFLOP, by part.

    A backward pass costs twice the forward pass, less the gradient of the first layer's input, which nobody needs.
    The observation's share of a critic's first layer is counted once per state.
    """
    B, K, H = workload.batch_size, workload.samples, workload.hidden
    inputs, A = workload.observation_size, workload.action_size
    members = 1 + workload.costs * workload.cost_heads
    target = members * (B * inputs * H + B * K * (A * H + H * H + H))
    critics = members * B * ((inputs + A) * H + H * H + H)
    policy = B * (inputs * H + H * H + 2 * A * H)
    backward = members * B * ((inputs + A) * H + 2 * H * H + 2 * H) + B * (inputs * H + 2 * H * H + 4 * A * H)
    flop = {PARTS[1]: policy, PARTS[2]: target, PARTS[5]: policy, PARTS[6]: critics, PARTS[7]: backward}
    return {part: 2 * each / 1e9 for part, each in flop.items()}


def peak(workload: Workload, dtype: torch.dtype) -> float:
    """GFLOP/s of one matrix product of the critics' second layer over all sampled actions; the best of many."""
    B, K, H = workload.batch_size, workload.samples, workload.hidden
    inputs, weight = torch.randn(B * K, H).to(dtype), torch.randn(H, H).to(dtype)
    out = torch.empty(B * K, H, dtype=dtype)
    best = float("inf")
    for _ in range(300):
        begin = time.process_time()
        torch.mm(inputs, weight, out=out)
        best = min(best, time.process_time() - begin)
    return 2 * B * K * H * H / best / 1e9


def main() -> None:
    """Answer rounds: milliseconds by part, and the peaks of the same moment."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--updates", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    prepare_processor(arguments.threads)
    workload = Workload()
    ours = Ours(workload)
    ours.updates(2.0)

    def play() -> dict[str, Any]:
        return {
            "milliseconds": measure(ours, arguments.updates),
            "gflop": arithmetic(workload),
            "peak_gflops": {
                "float32": peak(workload, torch.float32),
                "bfloat16": peak(workload, torch.bfloat16),
            },
        }

    answer_rounds(["torch", "numpy"], play)


if __name__ == "__main__":
    main()
