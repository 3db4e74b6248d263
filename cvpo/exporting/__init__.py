"""From a checkpoint to a verified bundle: what is served, as graphs, held against torch and measured."""
