"""How far predicted costs can be trusted: the forecast, the table of costs, bounds, alarm levels, shift."""
