"""Where a run learns: the choice, what it says, and learning that keeps to one device."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from cvpo.bundle import Constraint
from cvpo.errors import ConfigError
from cvpo.learning import learner
from cvpo.learning.config import TrainConfig
from cvpo.learning.replay import Batch
from cvpo.training import device
from cvpo.training.device import measure_update, settle_device
from tests.budget import small_config

O, A, B = 5, 2, 8  # noqa: E741  # sizes of an observation, an action and a batch
CONSTRAINTS = [Constraint(name="cost", cost_limit=25.0, discount=0.99, horizon_steps=500, window_steps=100)]


def settled(asked: str) -> tuple[TrainConfig, str]:
    return settle_device(small_config(compute={"device": asked}), O, A, CONSTRAINTS)


def pretend_cuda(monkeypatch: pytest.MonkeyPatch, milliseconds: dict[str, float]) -> None:
    def measured(*arguments: Any) -> float:
        return milliseconds[arguments[-1]]

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Pretended")
    monkeypatch.setattr(device, "measure_update", measured)


@pytest.mark.parametrize(("cpu", "cuda", "taken"), [(3.0, 5.0, "cpu"), (9.0, 5.0, "cuda")])
def test_auto_takes_what_is_faster_and_says_so(
    cpu: float, cuda: float, taken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_cuda(monkeypatch, {"cpu": cpu, "cuda": cuda})
    config, sentence = settled("auto")
    assert config.compute.device == taken
    assert sentence.startswith(f"device  {taken}")
    assert f"{cpu} ms an update on cpu, {cuda} on cuda" in sentence


def test_a_device_that_was_asked_for_is_taken_without_a_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_cuda(monkeypatch, {})
    assert settled("cpu")[0].compute.device == "cpu"
    config, sentence = settled("cuda")
    assert config.compute.device == "cuda"
    assert "not to the bit" in sentence


def test_without_a_cuda_device_auto_is_the_processor_and_cuda_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config, sentence = settled("auto")
    assert config.compute.device == "cpu"
    assert "no CUDA device was found" in sentence
    with pytest.raises(ConfigError, match=r"compute\.device is cuda, but torch .* finds no CUDA device"):
        settled("cuda")


def test_the_time_of_an_update_is_measured() -> None:
    assert 0.01 < measure_update(small_config(), O, A, CONSTRAINTS, "cpu") < 10_000


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_learning_and_acting_keep_to_the_device_of_the_networks(
    covariance: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CUDA device where there is one; else on torch's meta device, which as well refuses to meet another."""
    name = "cuda" if torch.cuda.is_available() else "meta"
    if name == "meta":
        pretend_values(monkeypatch)
    generator = np.random.default_rng(0)

    def drawn(*shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        return generator.random(shape, np.float32)

    config = small_config(mstep={"period": 1}, network={"covariance": covariance})
    state = learner.create(config, O, A, CONSTRAINTS, name)
    batch = Batch(drawn(B, O), drawn(B, A), drawn(B), drawn(B, 1), drawn(B), drawn(B, 1), drawn(B, O), B // 2)
    state.model.normalizer.update(state.tensor(batch.observation))
    assert learner.act(state, batch.observation, deterministic=1).shape == (B, A)
    metrics = learner.update(state, batch, np.array([30.0]), 0, config)
    assert metrics.kl_mean is not None
    assert {tensor.device.type for tensor in state.model.state_dict().values()} == {name}


class MetaGenerator(torch.Generator):
    """Says that it is on the meta device, which has no generator of its own."""

    def __new__(cls, *_: object) -> "MetaGenerator":
        return super().__new__(cls)

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("meta")


def pretend_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let tensors of the meta device, which have a shape only, be drawn, read back and stepped along a gradient."""
    real_randn, real_cpu, real_adam = torch.randn, torch.Tensor.cpu, torch.optim.Adam

    def randn(*size: Any, generator: torch.Generator, device: torch.device) -> torch.Tensor:
        return real_randn(*size, device=device)

    def cpu(tensor: torch.Tensor) -> torch.Tensor:
        return torch.rand(tensor.shape) if tensor.device.type == "meta" else real_cpu(tensor)

    value: Callable[[torch.Tensor], float] = lambda _: 0.5  # noqa: E731
    monkeypatch.setattr(torch, "Generator", MetaGenerator)
    monkeypatch.setattr(torch, "randn", randn)
    monkeypatch.setattr(torch.Tensor, "cpu", cpu)
    monkeypatch.setattr(torch.Tensor, "item", value)
    monkeypatch.setattr(torch.Tensor, "__float__", value)
    monkeypatch.setattr(torch.optim, "Adam", lambda groups, fused: real_adam(groups))
