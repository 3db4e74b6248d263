"""What a run learns on: the processor or a CUDA device, whichever is faster at its sizes."""

import ctypes
import statistics
import time
from collections.abc import Sequence

import numpy as np
import torch

from cvpo.bundle import Constraint
from cvpo.errors import ConfigError
from cvpo.learning import learner
from cvpo.learning.config import TrainConfig
from cvpo.learning.replay import Batch

WARM_UPDATES = 5  # the first ones load kernels
TIMED_UPDATES = 15


def prepare_processor(threads: int) -> None:
    """Give torch its threads, and let glibc keep freed memory: giving it back costs a page fault per 4 KiB.

    Measured with torch 2.13, batch 256 x 16 actions: the critics' forward pass takes 8 ms instead of 19.
    """
    torch.set_num_threads(threads)
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        for parameter in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
            libc.mallopt(parameter, 1 << 30)


def settle_device(
    config: TrainConfig, observation_size: int, action_size: int, constraints: Sequence[Constraint]
) -> tuple[TrainConfig, str]:
    """Take the device that was asked for or, where that is "auto", the faster one.

    Returns:
        The config with `compute.device` "cpu" or "cuda", which a resumed run keeps; and a sentence for people.

    Raises:
        ConfigError: a CUDA device was asked for, and there is none.
    """
    asked = config.compute.device
    if asked == "cpu":
        return config, "device  cpu"
    if not torch.cuda.is_available():
        if asked == "cuda":
            raise ConfigError(
                f"compute.device is cuda, but torch {torch.__version__} finds no CUDA device. Install a driver and "
                f"torch's CUDA build, or begin a run with --device cpu."
            )
        return _with_device(config, "cpu"), "device  cpu (no CUDA device was found)"
    measured = ""
    if asked == "auto":
        milliseconds = {
            device: measure_update(config, observation_size, action_size, constraints, device)
            for device in ("cpu", "cuda")
        }
        asked = "cpu" if milliseconds["cpu"] <= milliseconds["cuda"] else "cuda"
        measured = f", measured: {milliseconds['cpu']:.1f} ms an update on cpu, {milliseconds['cuda']:.1f} on cuda"
    if asked == "cpu":
        return _with_device(config, "cpu"), f"device  cpu{measured}"
    name = torch.cuda.get_device_name()
    exempt = "; a resumed run goes on, but not to the bit: CUDA does not add up in a fixed order"
    return _with_device(config, "cuda"), f"device  cuda ({name}){measured}{exempt}"


def measure_update(
    config: TrainConfig, observation_size: int, action_size: int, constraints: Sequence[Constraint], device: str
) -> float:
    """Median time of an update of a fresh learner on made-up data, in milliseconds."""
    generator = np.random.default_rng(0)
    B, C = config.replay.batch_size, len(constraints)
    batch = Batch(
        observation=generator.standard_normal((B, observation_size), np.float32),
        action=generator.uniform(-1, 1, (B, action_size)).astype(np.float32),
        reward=generator.standard_normal(B, np.float32),
        cost=generator.random((B, C), np.float32),
        discount=np.full(B, config.critic.discount, np.float32),
        cost_discount=np.full((B, C), config.critic.discount, np.float32),
        next_observation=generator.standard_normal((B, observation_size), np.float32),
        recent=B // 2,
    )
    state = learner.create(config, observation_size, action_size, constraints, device)
    measured_cost = np.zeros(C)
    times = []
    for _ in range(WARM_UPDATES + TIMED_UPDATES):
        begin = time.perf_counter()
        learner.update(state, batch, measured_cost, 0, config)  # its metrics are read back, so the device has finished
        times.append(time.perf_counter() - begin)
    return 1e3 * statistics.median(times[WARM_UPDATES:])


def _with_device(config: TrainConfig, device: str) -> TrainConfig:
    return config.model_copy(update={"compute": config.compute.model_copy(update={"device": device})})
