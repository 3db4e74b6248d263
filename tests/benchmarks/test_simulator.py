import numpy as np

from benchmarks.episodes import Action, Outcome, Simulator, digests, timed


class Counter:
    """A simulator whose episodes have 7 steps; it observes how many were taken, and rewards them."""

    def __init__(self, last_bit: float = 0.0) -> None:
        self.seeds: list[int] = []
        self.actions: list[Action] = []
        self._last_bit = last_bit
        bounds = np.array([-1.0, -2.0]), np.array([1.0, 2.0])
        self.simulator = Simulator(*bounds, np.float32, self.reset, self.ended, self.step)

    def reset(self, seed: int) -> np.ndarray:
        self.seeds.append(seed)
        self.steps = 0
        return np.zeros(1)

    def ended(self, action: Action) -> bool:
        self.actions.append(action)
        self.steps += 1
        return self.steps == 7

    def step(self, action: Action) -> Outcome:
        truncated = self.ended(action)
        info = {"cost_walls": 0.5, "goal_met": True} if self.steps == 3 else {"cost_walls": 0.0}
        return Outcome(np.array([self.steps + self._last_bit]), 1.0, info["cost_walls"], False, truncated, info)


def test_a_timed_round_is_of_whole_episodes_the_same_for_everyone() -> None:
    one, other = Counter(), Counter()
    answer = timed(one.simulator, 3, steps=20)
    timed(other.simulator, 3, steps=20)
    assert answer["steps"] == 21  # 20 end within the third episode
    assert one.seeds == other.seeds == [3000, 3001, 3002]
    np.testing.assert_array_equal(one.actions, other.actions)
    assert all(action.dtype == np.float32 for action in one.actions)
    timed(other.simulator, 4, steps=20)
    assert other.seeds[3:] == [4000, 4001, 4002]


def test_a_digest_tells_what_happened_and_changes_with_the_last_bit() -> None:
    told = digests(Counter().simulator, 2, episodes=2)["episodes"]
    assert [episode["seed"] for episode in told] == [2000, 2001]
    assert [(episode["steps"], episode["cost"], episode["goals"]) for episode in told] == [(7, 0.5, 1)] * 2
    assert digests(Counter().simulator, 2, episodes=2)["episodes"] == told
    different = digests(Counter(last_bit=1e-15).simulator, 2, episodes=2)["episodes"]
    assert all(one["digest"] != other["digest"] for one, other in zip(told, different, strict=True))


def test_our_simulator_plays_both_kinds_of_rounds() -> None:
    from benchmarks.ours.simulator import simulator

    speed = timed(simulator("SafetyPointCircle1-v0", digests=False), 1, steps=10)
    assert speed["steps"] == 500
    assert speed["core_seconds"] > 0
    episode = digests(simulator("SafetyPointCircle1-v0", digests=True), 1, episodes=1)["episodes"][0]
    assert episode["steps"] == 500
