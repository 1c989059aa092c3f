"""Environments with a cost: one door (``make_env``) for Safety-Gymnasium, Gymnasium and analytic tasks."""
