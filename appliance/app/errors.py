"""What the command line ends with: exit codes, and errors that carry one (contract §3)."""

from enum import IntEnum


class Exit(IntEnum):
    """Exit codes of ``weir``."""

    OK = 0
    FAILED = 1
    USAGE = 2
    CONFIGURATION = 3
    PRIVILEGE = 4  # or the kernel
    UNREACHABLE = 5  # the daemon
    TIMEOUT = 6


class AppError(Exception):
    """Something that ends a command. The text says what failed, on what, and what to do."""

    exit = Exit.FAILED


class ConfigurationFailed(AppError):
    """The configuration has errors; the text holds one message per line."""

    exit = Exit.CONFIGURATION


class PrivilegeMissing(AppError):
    """The process lacks a privilege, a user, or something of the kernel."""

    exit = Exit.PRIVILEGE


class DaemonUnreachable(AppError):
    """The daemon's API did not answer."""

    exit = Exit.UNREACHABLE


class TookTooLong(AppError):
    """A deadline passed."""

    exit = Exit.TIMEOUT
