"""Environments with a cost: one door for Safety-Gymnasium, Gymnasium and analytic tasks."""
