"""Measurements on energies, samples, multipliers and critics; pure functions."""
