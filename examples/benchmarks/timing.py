"""Timing functions against each other on a machine whose speed drifts."""

import statistics
import time
from collections.abc import Callable


def alternate(
    functions: dict[str, Callable], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Median seconds of each function, called in turn `rounds` times after one call to warm up."""
    seconds = {name: [] for name in functions}
    for function in functions.values():
        function()
    for _ in range(rounds):
        for name, function in functions.items():
            start = clock()
            function()
            seconds[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}
