"""`STAGEBEAM_RECIPE=my-recipe.yaml serve build serve.built:app`: that command takes an application,
and no arguments for its builder."""

import os

from serve.app import AppArgs, app_from_recipe

if "STAGEBEAM_RECIPE" not in os.environ:
    raise ValueError("Name the recipe in the environment variable STAGEBEAM_RECIPE.")
app = app_from_recipe(AppArgs(recipe=os.environ["STAGEBEAM_RECIPE"]))
