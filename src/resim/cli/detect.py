"""Fine-tune detectors, evaluate them, detect: `resim detect train|eval|predict|recipes`."""

from resim.cli import detect_eval, detect_predict, detect_recipes, detect_train

VERBS = {"train": detect_train, "eval": detect_eval, "predict": detect_predict, "recipes": detect_recipes}
