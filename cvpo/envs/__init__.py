"""Environments with costs: made by id, checked, stepped many at a time. Loads no simulator before a task needs it."""

from cvpo.envs.base import CostEnv, EnvSpec, Step
from cvpo.envs.make import make_env
from cvpo.envs.vector import VectorEnv, VectorStep

__all__ = ["CostEnv", "EnvSpec", "Step", "VectorEnv", "VectorStep", "make_env"]
