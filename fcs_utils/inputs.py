"""What a network takes: images, or several tensors for the arguments of its forward pass. The only place that tells them apart."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

# Images alone, or all arguments of a forward pass, in order or by name: tensors with a row for each image.
Inputs = Tensor | Sequence[Tensor] | Mapping[str, Tensor]


def call(model: Callable[..., Any], images: Inputs) -> Any:
    """What a network returns."""
    if isinstance(images, Tensor):
        return model(images)
    return model(**images) if isinstance(images, Mapping) else model(*images)


def parts_of(images: Inputs) -> list[Tensor]:
    """The tensors, one or several."""
    if isinstance(images, Tensor):
        return [images]
    return [*(images.values() if isinstance(images, Mapping) else images)]


def of_each(images: Inputs, function: Callable[[Tensor], Tensor]) -> Inputs:
    """What a function makes of each tensor, in its place."""
    if isinstance(images, Tensor):
        return function(images)
    if isinstance(images, Mapping):
        return {name: function(one) for name, one in images.items()}
    return tuple(map(function, images))


def first_of(images: Inputs, count: int = 1, start: int = 0) -> Inputs:
    """So many images, the first ones or those from ``start`` on, with all that belongs to them."""
    return of_each(images, lambda one: one[start : start + count])


def count_of(images: Inputs) -> int:
    """How many images there are."""
    return len(parts_of(images)[0])


def split_batches(images: Inputs, most: int, even: bool = False) -> Iterator[Inputs]:
    """Batches of at most so many images, in order. even: of nearly one size instead of full ones and a rest."""
    count = count_of(images)
    batches = -(-count // most)
    sizes = [count // batches + (number < count % batches) for number in range(batches)] if even else [most] * batches
    for start, size in zip(itertools.accumulate(sizes, initial=0), sizes, strict=False):
        yield first_of(images, size, start)


def laid_out(images: Inputs, layout: torch.memory_format) -> Inputs:
    """The images in a memory format, which only tensors (N, C, H, W) can have; others are contiguous."""
    return of_each(images, lambda one: one.contiguous(memory_format=layout) if one.dim() == 4 else one.contiguous())


def placed(images: Inputs, weight: Tensor) -> Inputs:
    """The images where a weight is, and of its type, but for whole numbers, which may be indices."""
    return of_each(images, lambda one: one.to(weight) if one.is_floating_point() else one.to(weight.device))


def moved(images: Inputs, device: torch.device) -> Inputs:
    """The images on a device."""
    return of_each(images, lambda one: one.to(device))


def noise_like(images: Inputs, count: int, generator: torch.Generator, share: float = 1.0) -> Inputs:
    """So many random images of the same types. Whole numbers cannot be drawn: they are those of the images, again and again.

    share: of the sides of the images, all axes behind the channels.
    """

    def draw(one: Tensor) -> Tensor:
        if not one.is_floating_point():
            return one[torch.arange(count, device=one.device) % len(one)]
        sides = (max(1, int(share * side)) for side in one.shape[2:])
        return torch.randn(count, *one.shape[1:2], *sides, generator=generator).to(one)

    return of_each(images, draw)


def blank_like(images: Inputs) -> Inputs:
    """One image of zeros; of several inputs the first of each, since zero may be nothing that one of them can be."""
    return torch.zeros_like(images[:1]) if isinstance(images, Tensor) else first_of(images)


def shapes_of(images: Inputs) -> tuple[int, ...] | list[tuple[int, ...]]:
    """The shape of one image, or of each tensor that belongs to it."""
    shapes = [tuple(one.shape[1:]) for one in parts_of(images)]
    return shapes[0] if isinstance(images, Tensor) else shapes


def images_in_words(images: Inputs) -> str:
    """Type, shape and place of the images, with the names of several."""
    names = [f"{name} " for name in images] if isinstance(images, Mapping) else [""] * len(parts_of(images))
    found = ", ".join(f"{name}{one.dtype} {tuple(one.shape)}" for name, one in zip(names, parts_of(images), strict=True))
    return f"images {found} on {parts_of(images)[0].device}"
