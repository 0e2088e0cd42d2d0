"""What both sides of the wire must agree on, and the small Trio tools both use."""

__version__ = "0.1.0"
