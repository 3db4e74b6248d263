"""Environments with costs: made by id, checked, stepped many at a time. Loads Safety-Gymnasium when a task needs it."""

from cvpo.envs.base import CostEnv, EnvSpec, Step
from cvpo.envs.check import Finding, check_env
from cvpo.envs.make import make_env
from cvpo.envs.vector import VectorEnv, VectorStep

__all__ = ["CostEnv", "EnvSpec", "Finding", "Step", "VectorEnv", "VectorStep", "check_env", "make_env"]
