"""Helpers of the course "The Discriminator Is an Energy". Import its modules one by one."""

__version__ = "0.1.0"
