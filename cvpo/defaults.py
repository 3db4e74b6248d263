"""What holds where nobody says otherwise, and more than one room must know."""

CANDIDATES = 8  # of a shielded policy
CONFIDENCE = 0.9  # of cost_upper
MISS_RATE = 0.05  # of sessions that exceed their budget, the share without a flag in time
CALIBRATION_EPISODES, EVALUATION_EPISODES = 100, 50
STEP_TIMEOUT_SECONDS = 60.0  # of a simulator process, for a step of its environments
