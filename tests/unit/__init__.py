"""Each part alone: planner, options, passes, signature, lines, templates, counters, cuts, version check."""
