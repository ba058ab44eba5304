"""What holds for all tests."""

from __future__ import annotations

import signal

from hypothesis import HealthCheck, settings

# How long an example takes says more of what else the machine does than of the example.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

# A shell has what it starts in the background ignore it, and so would every program that a test interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)
