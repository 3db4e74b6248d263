"""The networks of a bundle's graphs, run by ONNX Runtime: what calibrating again has instead of a model in torch."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cvpo.bundle import CRITIC_GRAPH, GRAPHS, POLICY_GRAPH, Bundle
from cvpo.calibration.costmap import CostMap
from cvpo.calibration.forecast import CostForecast
from cvpo.exporting.graphs import NETWORK_VALUES, networks_graph
from cvpo.exporting.runtime import open_graph
from cvpo.exporting.served import Answering, NetworkValues


class ExportedNetworks:
    """The networks of both graphs of a bundle, without what was made of their values at export."""

    def __init__(self, bundle: Bundle) -> None:
        """Cut them out.

        Raises:
            BundleError: the networks cannot be told from the rest of the graphs.
        """
        self._sessions = {name: open_graph(networks_graph(name, bundle.graph(name))) for name in GRAPHS}
        self._action_low = np.array(bundle.manifest.action.low, np.float32)

    def policy_values(self, observation: Tensor, noise: Tensor) -> NetworkValues:
        """As `Answering.policy_values`."""
        return self._run(POLICY_GRAPH, observation=observation, noise=noise)

    def critic_values(self, observation: Tensor, action: Tensor) -> NetworkValues:
        """As `Answering.critic_values`."""
        return self._run(CRITIC_GRAPH, observation=observation, action=action)

    def normalize(self, observation: Tensor) -> Tensor:
        """Observations [N, O] as the networks see them: the graphs' own values, to the bit."""
        return self._of_any_action(observation).normalized

    def shift_score(self, observation: Tensor) -> Tensor:
        """Of observations [N, O], [N]."""
        return self._of_any_action(observation).shift_score

    def _of_any_action(self, observation: Tensor) -> NetworkValues:
        return self.critic_values(observation, torch.from_numpy(self._action_low).expand(len(observation), -1))

    def _run(self, name: str, **inputs: Tensor) -> NetworkValues:
        outputs = self._sessions[name].run(
            list(NETWORK_VALUES), {port: np.ascontiguousarray(value) for port, value in inputs.items()}
        )
        return NetworkValues(*map(torch.from_numpy, outputs))


class ExportedAnswering(Answering):
    """Networks of a bundle, with a forecast and a map of costs of their own."""

    def __init__(
        self,
        networks: ExportedNetworks,
        forecast: CostForecast | None,
        cost_map: CostMap,
        action_low: NDArray[np.float64],
        action_high: NDArray[np.float64],
    ) -> None:
        """Put them together; for the arguments see `Answering`."""
        super().__init__(forecast, cost_map, action_low, action_high, reward_scale=0.0)
        self.networks = networks

    def policy_values(self, observation: Tensor, noise: Tensor) -> NetworkValues:
        return self.networks.policy_values(observation, noise)

    def critic_values(self, observation: Tensor, action: Tensor) -> NetworkValues:
        return self.networks.critic_values(observation, action)
