"""The checker that the jaxtyping import hook of conftest.py puts around every function and class."""

from beartype import BeartypeConf, beartype

# An int is a fine float, as in PEP 484; beartype alone would refuse `cost_limit=25`.
check = beartype(conf=BeartypeConf(is_pep484_tower=True))
