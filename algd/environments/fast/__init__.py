"""Safety-Gymnasium's navigation tasks with the same numbers, several times faster.

`navigation` is the environment; `world` moves the bodies of a model compiled once, `layout` draws
their places, `physics` steps, `sensing` observes, `costs` and `rewards` judge, `state` saves.
"""
