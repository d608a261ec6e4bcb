"""Sends tasks: one call, many calls, or a batch."""
