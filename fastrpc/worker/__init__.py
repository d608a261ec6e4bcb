"""Builds the messages that store_result sends."""
