"""Holds functions to the shapes in their signatures while the tests run, through jaxtyping's import hook.

Arrays alone are looked at: their number of dimensions, sizes and kinds of numbers, of jax's, numpy's and traced ones
alike. Letters mean one size within a call. What mypy knows (classes, protocols) and fields of dataclasses, which are
stacked and sliced as pytrees, are not looked at.
"""

import functools
import inspect
import types
import typing
from typing import Any

import jaxtyping


def check(function):
    """A function that raises TypeError where an argument or its result is not of the shape that it says."""
    annotations = {name: kind for name, kind in inspect.get_annotations(function).items() if named(kind)}
    if not annotations or function.__name__ == "__init__":
        return function
    signature = inspect.signature(function)

    @functools.wraps(function)
    def checked(*args, **kwargs):
        bound = signature.bind(*args, **kwargs)
        for name, value in bound.arguments.items():
            if name in annotations and not fits(value, annotations[name]):
                raise TypeError(name)  # jaxtyping finds the words
        out = function(*args, **kwargs)
        if "return" in annotations and not fits(out, annotations["return"]):
            raise TypeError("return")
        return out

    return checked


def fits(value: Any, kind: Any) -> bool:
    """Whether the arrays of a value have the shapes of the arrays of a kind."""
    of = typing.get_args(kind)
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        return any(fits(value, one) for one in of if named(one)) or not is_array(value)
    if typing.get_origin(kind) is tuple and isinstance(value, tuple):
        of = of[:1] * len(value) if of[-1] is Ellipsis else of
        return len(of) == len(value) and all(fits(one, kind) for one, kind in zip(value, of, strict=True))
    if typing.get_origin(kind) is dict and isinstance(value, dict):
        return all(fits(one, of[1]) for one in value.values())
    if not is_shape(kind) or not is_array(value):
        return True
    return isinstance(value, kind.dtype[Any, kind.dim_str])


def named(kind: Any) -> bool:
    """Whether a kind has an array's shape somewhere in it."""
    return is_shape(kind) or any(named(one) for one in typing.get_args(kind))


def is_shape(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, jaxtyping.AbstractArray)


def is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")
