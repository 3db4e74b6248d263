"""What each use of episodes adds to the seed it is given, so that no two uses meet the same episodes."""

CHECKPOINTS = 1_000_003  # those that training evaluates its checkpoints on, and that choose one
EXPORT = 2_000_003  # those that an export is calibrated and measured on
EVALUATION = 3_000_017  # those of whoever looks at a policy: cvpo evaluate, video and demo, and benchmarks.learning
RECALIBRATION = 4_000_037  # those that a bundle is calibrated and measured on again

# Of benchmarks:
CALIBRATION_BENCHMARK = 5_000_011
SHIELD_BENCHMARK = 6_000_011
PRECISION_BENCHMARK = 7_000_003
SHIFT_BENCHMARK = 8_000_009
