"""A self-contained network with real clients and a real origin, in which Weir does its main job.

Three network namespaces, client – gateway – origin, on one machine: the host's own routes, rules and firewall are
never touched, and everything vanishes with the namespaces. Also the base of the tests in ``tests/netns`` and of the
benchmarks in ``tests/bench``.
"""


class LabFailed(Exception):
    """The lab could not be built or run: one cause, one fix, and the exit code of the command (contract §3)."""

    def __init__(self, cause: str, fix: str, code: int = 1) -> None:
        super().__init__(f"{cause} (try: {fix})")
        self.cause = cause
        self.fix = fix
        self.code = code
