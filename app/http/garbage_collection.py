"""Settings of Python's garbage collector for a process that holds thousands of requests."""

from __future__ import annotations

import gc

# By generation: net allocations, then collections of the generation below. The first is small
# because deallocations count against it: under requests that come and go, a larger threshold would
# be reached only after minutes, and would then find all their objects in the youngest generation.
_THRESHOLDS = 200, 20, 1_000


def tune_garbage_collection() -> None:
    """Collect cycles less often. Call this when everything has been imported.

    A full collection visits every object, and nothing else runs meanwhile. Thousands of held
    requests make it long, and the objects that come and go with them make it frequent, by default;
    yet they leave no cycles behind. So young objects are examined while they are few, old ones
    after many more allocations, and what the process started with is not examined again.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
