"""A rolling restart under load, and its effect on waiting clients."""
