"""The checker that the jaxtyping import hook of conftest.py puts around every function.

It looks at annotated arrays alone, their shapes and dtypes; pyright has looked at all other types.
"""

from collections.abc import Callable
from inspect import isclass
from typing import Any, get_args

from beartype import beartype
from jaxtyping import AbstractArray


def _names_an_array(hint: Any) -> bool:
    if isclass(hint) and issubclass(hint, AbstractArray):
        return True
    return any(_names_an_array(argument) for argument in get_args(hint))


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function with its array annotations enforced."""
    hints = {k: hint for k, hint in function.__annotations__.items() if _names_an_array(hint)}
    if not hints:
        return function
    function.__annotations__ = hints
    return beartype(function)
