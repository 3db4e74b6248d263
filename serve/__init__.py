"""The policy service and its client: bundles in, actions and predicted costs out. Loads nothing by itself."""
