"""A model of classes is trained on a dataset whose captions are their numbers, and any other on one of words."""

from __future__ import annotations

from collections.abc import Iterable

from kineograph.errors import UserError
from kineograph.models.dit import DiTShape
from kineograph.models.stdit import STDiTShape
from kineograph.models.text import ClassLabels


def knows_classes(model: STDiTShape | DiTShape) -> bool:
    """Whether it is asked for a class, and not for words."""
    return isinstance(model, DiTShape) and model.condition == "class"


def check_condition(model: STDiTShape | DiTShape, text_encoder: str) -> None:
    """Raise UserError when the dataset's captions, as encoded, are not what ``model`` is asked for."""
    are_classes = text_encoder == ClassLabels.name
    if knows_classes(model) and not are_classes:
        raise UserError(
            f"model.condition is class, and the dataset has captions encoded by {text_encoder}: set model.condition=text, "
            f"or curate with the text encoder {ClassLabels.name}, for captions that are numbers of classes"
        )
    if are_classes and not knows_classes(model):
        raise UserError(
            "the dataset's captions are numbers of classes, and the model is asked for words: set model.kind=dit and "
            "model.condition=class, or curate with a text encoder"
        )


def check_classes(model: STDiTShape | DiTShape, prompts: Iterable[str], whose: str) -> None:
    """Raise UserError when one of ``prompts``, of which "" is none, is no class that ``model`` has."""
    if not isinstance(model, DiTShape) or not knows_classes(model):
        return
    for prompt in sorted({prompt for prompt in prompts if prompt.strip()}):
        ((high, low),) = ClassLabels().encode([prompt])[0]
        if 256 * int(high) + int(low) >= model.num_classes:
            raise UserError(f"{whose} {prompt}: the model has the classes 0 to {model.num_classes - 1}")
