"""The shape of load that an option names, as Locust asks for it every second."""

from __future__ import annotations

from typing import TYPE_CHECKING

from locust import LoadTestShape

from loadtests.pollers.options import NO_SHAPE, STAMPEDE
from loadtests.pollers.shapes import DEPLOY_AT, PLANS

if TYPE_CHECKING:
    from collections.abc import Callable

    from locust.runners import Runner


class ChosenShape(LoadTestShape):
    """The shape that `--shape` names, for as long as `--run-time` or `--shape-seconds`.

    Args:
        runner: Locust's.
        deploy: called once while the users of a stampede are away.
    """

    abstract = False
    use_common_options = True

    def __init__(self, runner: Runner, deploy: Callable[[], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.runner = runner
        self._deploy = deploy
        self._away = False
        self._deployed = False

    def reset_time(self) -> None:
        """Begin again, as Locust asks at each start."""
        super().reset_time()  # type: ignore[no-untyped-call]
        self._away = False
        self._deployed = False

    def tick(self) -> tuple[int, float] | None:
        """Return how many users there are to be now, and how many come a second; None to stop."""
        runner = self.runner
        options = None if runner is None else runner.environment.parsed_options
        if runner is None or options is None or options.shape == NO_SHAPE:
            return None
        duration = options.shape_seconds if options.run_time is None else options.run_time
        elapsed: float = self.get_run_time()  # type: ignore[no-untyped-call]
        at = elapsed / duration
        if at >= 1:
            return None
        most = max(1, 1 if options.num_users is None else options.num_users)
        if options.shape == STAMPEDE and at >= DEPLOY_AT and not self._away:
            self._away = True
            return 0, most
        if self._away and not self._deployed:
            # Locust would count users whose polls are still held as users that have come back.
            if runner.user_count:
                return 0, most
            self._deployed = True  # after the users have left: they would fill the cache again
            self._deploy()
        return PLANS[options.shape](at, most), most
