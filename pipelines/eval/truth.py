"""Rendered truth: scenes of the synthetic world that show what a prompt asks for, to grade the oracle
itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from kineograph.media.geometry import Bucket, sample_times
from kineograph.synth.oracle import Expected, expected
from kineograph.synth.scene import DIRECTIONS, SPEEDS, Scene, SceneObject, render, sample_scene
from pipelines.eval.prompts import held_out_seed


def render_truth(prompts: Sequence[str], seed: int, bucket: Bucket, fps: float) -> Iterator[np.ndarray]:
    """For each prompt, a caption of the synthetic world, a video uint8 (T, H, W, 3) that shows it."""
    times = np.zeros(1) if bucket.is_image else sample_times(0.0, bucket.frames, fps)
    for place, prompt in enumerate(prompts):
        scene = scene_for(prompt, np.random.default_rng(held_out_seed(seed, "truth", place)))
        yield render(scene, bucket.width, bucket.height, times)


def scene_for(prompt: str, rng: np.random.Generator) -> Scene:
    """A scene drawn as the corpus draws them, given that ``prompt`` is true of it.

    Raises ValueError on a prompt that the world has no scene for.
    """
    demands = expected(prompt)
    if demands is None or len(demands) > 2 or len({d.colour for d in demands}) < len(demands):
        raise ValueError(f"the synthetic world has no scene for {prompt!r}")
    while True:  # until the colours fit, as the background was drawn to show them: six tries, thirty for two
        scene = sample_scene(rng, two_objects=float(len(demands) == 2))
        if all(
            item.colour == demand.colour and _same_axis(item, demand)
            for item, demand in zip(scene.objects, demands, strict=True)
        ):
            objects = tuple(_told(i, d, rng) for i, d in zip(scene.objects, demands, strict=True))
            return replace(scene, objects=objects)


def _same_axis(item: SceneObject, demand: Expected) -> bool:
    """Whether the object moves along the demanded axis: two objects start apart across the first one's."""
    if demand.direction is None or item.direction is None:
        return True
    return bool(DIRECTIONS[item.direction][0]) == bool(DIRECTIONS[demand.direction][0])


def _told(item: SceneObject, demand: Expected, rng: np.random.Generator) -> SceneObject:
    """The object with the shape, direction and speed that are demanded."""
    if demand.direction is None:
        return replace(item, shape=demand.shape, direction=None, speed=None, rate=0.0)
    item = replace(item, shape=demand.shape, direction=demand.direction)
    if demand.speed is None or demand.speed == item.speed:
        return item
    return replace(item, speed=demand.speed, rate=float(rng.uniform(*SPEEDS[demand.speed])))
