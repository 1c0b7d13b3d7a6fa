"""What values may be: types that pydantic checks, in configurations and in calls of the functions that people use."""

from __future__ import annotations

import inspect
import numbers
import typing
from collections.abc import Callable, Mapping
from functools import cache, wraps
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar

import numpy as np
import torch
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, ValidationError, create_model
from pydantic_core import PydanticCustomError
from torch import Tensor, nn
from torch._subclasses import FakeTensor

from fcs_utils.errors import StudyError, allowed_by, refuse, refuse_field
from fcs_utils.inputs import Inputs, parts_of

P = ParamSpec("P")
R = TypeVar("R")


def _is_share(value: float) -> float:
    if not 0 < value < 1:
        raise PydanticCustomError("share", "Input should be above 0 and below 1")  # pydantic's own words name one of the bounds
    return value


Ratio = Annotated[float, AfterValidator(_is_share)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def plain_number(value: Any) -> Any:
    """A number of NumPy as Python's own; everything else as it is."""
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)
    return float(value) if isinstance(value, np.floating) else value


OF_NUMPY = BeforeValidator(plain_number)
Amount = Annotated[int, Field(strict=True, ge=0), OF_NUMPY]
Count = Annotated[int, Field(strict=True, ge=1), OF_NUMPY]
Seed = Annotated[int, Field(strict=True, ge=0, lt=2**32), OF_NUMPY]  # what every generator here takes
# Sizes of networks. A slip of the hand, such as width=100, is refused before memory is asked for.
Width = Annotated[float, Field(gt=0, le=8)]
Channels = Annotated[int, Field(strict=True, ge=1, le=10_000), OF_NUMPY]
Classes = Annotated[int, Field(strict=True, ge=1, le=100_000), OF_NUMPY]


def _ordinary(tensor: Tensor) -> bool:
    odd = tensor.is_meta or tensor.is_inference() or tensor.is_quantized or tensor.is_nested or nn.parameter.is_lazy(tensor)
    return not odd and not isinstance(tensor, FakeTensor)


def _is_network(model: nn.Module) -> nn.Module:
    tensors = [*model.parameters(), *model.buffers()]
    if not all(map(_ordinary, tensors)):
        raise ValueError("a network with real weights: none on device meta, lazy, quantised or made in inference mode")
    return model


def _is_plain(tensor: Tensor) -> Tensor:
    if not _ordinary(tensor) or tensor.requires_grad or tensor.layout is not torch.strided:
        raise ValueError("a plain, dense tensor: not on device meta or in inference mode, and without a gradient (use .detach())")
    return tensor


def _are_images(images: Any) -> Any:
    if isinstance(images, Tensor):
        if _is_plain(images).dim() not in (3, 4, 5) or not images.numel() or not images.is_floating_point():
            raise ValueError("a float tensor (N, C, H, W) with N of 1 or more, (N, C, L) of signals or (N, C, D, H, W) of volumes")
    else:
        parts = parts_of(images) if isinstance(images, Mapping | tuple | list) else []
        named = not isinstance(images, Mapping) or all(isinstance(name, str) for name in images)
        if not parts or not named or not all(isinstance(one, Tensor) and one.dim() and one.numel() for one in parts):
            raise ValueError("a tensor; a tuple or list of several in forward's order; or a dict of them by its arguments' names")
        if len({len(_is_plain(one)) for one in parts}) > 1 or any(one.is_complex() for one in parts):
            raise ValueError("real tensors of equally many rows, one for each image")
    if not all(one.isfinite().all() for one in parts_of(images)):
        raise ValueError("images without NaN and infinity")
    return images


def _are_labels(labels: Tensor) -> Tensor:
    if labels.dim() != 1 or labels.dtype != torch.int64 or (len(labels) and labels.min() < 0):
        raise ValueError("an int64 tensor (N,) of 0 and above")
    return labels


def _is_path(path: str | Path) -> str | Path:
    if not str(path) or "\0" in str(path):
        raise ValueError("the name of a file")
    return path


Model = Annotated[nn.Module, AfterValidator(_is_network)]
Images = Annotated[Inputs, PlainValidator(_are_images)]
Labels = Annotated[Tensor, AfterValidator(_is_plain), AfterValidator(_are_labels)]
FilePath = Annotated[str | Path, AfterValidator(_is_path)]


class Config(BaseModel):
    """Immutable, hashable by content, unknown fields refused.

    Raises StudyError for the first field that does not fit. ``model_validate`` raises pydantic's own error, which knows where
    in a file the field is.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise refuse_field(error) from error

    # Else pydantic would call __init__ for configurations inside others, too, and lose the way to the field.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]


def _refusal(given: Mapping[str, Any], error: Mapping[str, Any]) -> StudyError:
    name, *steps = error["loc"]
    inside, words = given[name], [str(name)]
    for step in steps:  # some name a branch of a union, not a part of the value
        if (isinstance(inside, Mapping) and step in inside) or (isinstance(inside, list | tuple) and isinstance(step, int)):
            inside = inside[step]
            words.append(str(step))
    return refuse(".".join(words), error["input"], allowed_by(error))


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Check the arguments of every call against the function's annotations before the call; numbers of NumPy become Python's.

    Raises StudyError for the first that does not fit: it names the parameter, its value and what is allowed. Missing and
    unknown arguments are a TypeError, as without this. What the function makes has gradients also inside ``inference_mode``.
    """
    signature = inspect.signature(function)
    plain = {name for name, one in signature.parameters.items() if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)}

    @cache
    def rules() -> type[BaseModel]:
        hints = typing.get_type_hints(function, include_extras=True)
        options = ConfigDict(arbitrary_types_allowed=True, strict=True, protected_namespaces=())
        fields = {name: (hint, None) for name, hint in hints.items() if name in plain}
        return create_model("Arguments", __config__=options, **fields)  # type: ignore[call-overload]

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        bound = signature.bind(*args, **kwargs)
        for name, value in bound.arguments.items():
            options = signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
            bound.arguments[name] = {n: plain_number(v) for n, v in value.items()} if options else plain_number(value)
        given = bound.arguments
        try:
            rules().model_validate({name: value for name, value in given.items() if name in rules().model_fields})
        except ValidationError as error:
            raise _refusal(given, error.errors(include_url=False)[0]) from error
        with torch.inference_mode(False):
            return function(*bound.args, **bound.kwargs)

    return call
