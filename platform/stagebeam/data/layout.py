"""Where the rows of a recipe go: the folder of each split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from stagebeam.recipe import Recipe
from stagebeam.storage import Place

TRAIN_SPLIT = "train"


@dataclass(frozen=True, slots=True)
class Layout:
    """The folders that get shards; rows of the split `train` go to `folders[train]`."""

    folders: tuple[Place, ...]
    train: int = 0
    others: int = 0

    def folder(self, split: str) -> int:
        """The number of the folder that rows of this split go to."""
        return self.train if split == TRAIN_SPLIT else self.others

    @classmethod
    def of(cls, recipe: Recipe) -> Self:
        """Folders without a source or a held-out share are left out.

        Raises ValueError if the recipe has no sources, or holds rows out of training into training.
        """
        if not recipe.data.sources:
            raise ValueError(f"The recipe {recipe.name} has no data.sources to prepare.")
        train = recipe.data.shards
        others = recipe.evaluation.shards if recipe.evaluation else train
        splits = [source.split for source in recipe.data.sources]
        held_out = recipe.data.held_out
        if held_out is not None and held_out.split == TRAIN_SPLIT:
            raise ValueError(f"data.held_out.split must be another split than {TRAIN_SPLIT}.")
        if held_out is not None and TRAIN_SPLIT in splits:
            splits.append(held_out.split)
        # A dict keeps the order of the sources and each folder once.
        used = list(dict.fromkeys(train if s == TRAIN_SPLIT else others for s in splits))
        places = [used.index(folder) if folder in used else 0 for folder in (train, others)]
        return cls(tuple(used), *places)
