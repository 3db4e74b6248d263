import pytest
import torch

from benchmarks.ours.learner import Ours
from benchmarks.ours.parts import PARTS, arithmetic, measure, peak
from benchmarks.workload import Workload

SMALL = Workload(batch_size=8, samples=4, hidden=8)


def test_every_part_of_an_update_is_found_in_the_learner() -> None:
    # The learner's functions are marked by name: this fails when one is renamed or no longer called.
    parts = measure(Ours(SMALL, stored=100), 3)
    assert list(parts) == list(PARTS)
    assert min(parts.values()) > 0


def test_marks_leave_the_learner_as_it_was() -> None:
    plain, marked = Ours(SMALL, stored=100), Ours(SMALL, stored=100)
    plain.update()
    measure(marked, 1)
    for one, other in zip(plain.state.model.parameters(), marked.state.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_arithmetic_of_an_update_counted_by_hand() -> None:
    # B 256, K 16, O 28, A 2, H 128, 2 critics; times 2 for multiply and add, in GFLOP.
    # Target critics: 2 x (256 x 28 x 128 + 4096 x (2 x 128 + 128 x 128 + 128)) = 139,198,464.
    # Critics, forward: 256 x 2 x (30 x 128 + 128 x 128 + 128) = 10,420,224.
    # Backward is twice that, less the gradients of the inputs, which nobody needs:
    # 256 x 2 x (30 x 128 + 2 x 128 x 128 + 2 x 128) + 256 x (28 x 128 + 2 x 128 x 128 + 4 x 2 x 128) = 28,442,624.
    counted = arithmetic(Workload())
    assert counted["target critics, K actions a state"] == pytest.approx(2 * 139_198_464 / 1e9)
    assert counted["critics: forward and loss"] == pytest.approx(2 * 10_420_224 / 1e9)
    assert counted["backward, Adam"] == pytest.approx(2 * 28_442_624 / 1e9)
    assert sum(counted.values()) == pytest.approx(0.38, abs=0.02)


def test_peak_is_positive() -> None:
    assert peak(SMALL, torch.float32) > 0
