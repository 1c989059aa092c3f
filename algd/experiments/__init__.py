"""Typed configuration and the command line."""
