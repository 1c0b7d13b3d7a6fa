"""The shapes of what a network takes, as a plan keeps them, and images of these shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from fcs_utils.config import Count
from fcs_utils.errors import StudyError, refuse
from fcs_utils.inputs import Inputs, parts_of

RANDOM_TYPES = ("float16", "bfloat16", "float32", "float64")  # types that random images may have


class Input(BaseModel):
    """One of several inputs. name: of the argument of forward, or None for inputs in order. shape: of one image's part."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str | None = None
    shape: tuple[Count, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.name or 'a tensor'} {self.dtype} (N{''.join(f', {side}' for side in self.shape)})"


def shape_fields(images: Inputs) -> dict[str, Any]:
    """The fields of a plan for networks that take such images."""
    names = [*images] if isinstance(images, Mapping) else [None] * len(parts_of(images))
    found = [
        Input(name=name, shape=tuple(one.shape[1:]), dtype=str(one.dtype).removeprefix("torch."))
        for name, one in zip(names, parts_of(images), strict=True)
    ]
    several = {} if isinstance(images, Tensor) else {"inputs": tuple(found)}
    return {"input_shape": found[0].shape, **several}


def check_example(input_shape: Sequence[int], inputs: Sequence[Input], example: Inputs) -> None:
    """Raises StudyError for an example of other channels, names or types than a plan's images; other sizes are allowed."""
    given = shape_fields(example)
    others = given.get("inputs", ())
    if not inputs and (others or given["input_shape"][0] != input_shape[0]):
        raise refuse("example", example, f"images (N, {input_shape[0]}, ...), as those of the plan")
    alike = all(_same_but_for_size(one, other) for one, other in zip(inputs, others, strict=False))
    if len(inputs) != len(others) or not alike:
        raise refuse("example", example, f"inputs as those of the plan, of this size or another: {'; '.join(map(str, inputs))}")


def _same_but_for_size(one: Input, other: Input) -> bool:
    drawn = one.dtype in RANDOM_TYPES
    sizes = len(one.shape) == len(other.shape) and (not drawn or one.shape[:1] == other.shape[:1])
    return one.name == other.name and sizes and (other.dtype in RANDOM_TYPES if drawn else one.dtype == other.dtype)


def images_like(input_shape: Sequence[int], inputs: Sequence[Input], example: Inputs | None) -> Inputs:
    """Images of a plan's size: zeros, or for several inputs the example where there is one.

    Raises StudyError where an input is whole numbers, which only an example can give.
    """
    if not inputs:
        return torch.zeros(1, *input_shape)
    if example is not None:
        return example
    if whole := next((one for one in inputs if one.dtype not in RANDOM_TYPES), None):
        raise StudyError(f"the network reads {whole}, which cannot be drawn at random: pass example=, inputs of yours")
    blank = [torch.zeros(1, *one.shape) for one in inputs]
    return {str(one.name): tensor for one, tensor in zip(inputs, blank, strict=True)} if inputs[0].name else tuple(blank)
