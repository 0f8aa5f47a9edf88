"""What is raised for a broker."""

from __future__ import annotations


class BrokerError(Exception):
    """The broker did not do what was asked of it. One of the two below."""


class BrokerUnavailable(BrokerError):
    """The broker could not be reached, or did not answer in time.

    Of a command that changes something, such as `Log.append`, it is not known whether the broker
    carried it out: it may have been carried out, even more than once.
    """


class BrokerRefused(BrokerError):
    """The broker answered, and refused: a wrong password, a missing permission, a server that is
    none that can be used, a key that holds something else."""
