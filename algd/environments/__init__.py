"""Environments with a cost: Safety-Gymnasium, Gymnasium and analytic tasks behind `make_env`."""
