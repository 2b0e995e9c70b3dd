"""ReSim in a training loop of your own: your data, your optimiser, your logging; our model and losses.

    python examples/your_own_loop.py DIR --steps 100 --out encoder.pt

The loader gives view pairs and the crops they were cut with. `resim.load("encoder.pt")` reads what is saved, as do
`resim probe`, `resim export` and `resim detect train --init`.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import torch

import resim
from resim.views.finish import Finisher
from resim.views.folder import find_images
from resim.views.loader import BatchOrder, PairDataset, make_loader, read_batches, shuffle_order


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    recipe = resim.recipes.quick()
    recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, group_size=options.batch))
    model = resim.ReSim(recipe.model).to(device).train()
    optimizer = torch.optim.AdamW(model.query.parameters(), lr=1e-3, weight_decay=0.05)

    paths = find_images([options.folder])
    order = BatchOrder(len(paths), options.batch, seed=0, start_step=0, end_step=options.steps, rank=0, processes=1)
    loader = make_loader(PairDataset(paths, recipe.views, seed=0), order, workers=2)
    finish_views = Finisher(recipe.views, device)  # flips, colours and blur, for the batch at once

    for step, batch in enumerate(read_batches(loader)):
        views_q, views_k = finish_views(batch)
        losses = model(views_q, views_k, order=shuffle_order(options.batch, 0, step))
        optimizer.zero_grad()
        losses["total"].backward()
        optimizer.step()
        print(f"step {step + 1}", *(f"{name} {value.item():.3f}" for name, value in losses.items()), flush=True)

    if options.out:
        torch.save({"recipe": recipe.to_json(), "model": model.state_dict()}, options.out)


if __name__ == "__main__":
    main()
