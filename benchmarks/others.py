"""Other libraries' MoCo v2 for libraries.py: the step of each, its own data set and transforms."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from resim.bench.measure import peak_memory_gb, time_run, time_turns

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Other:
    """A library: its parts, built from the options when its row runs, and a note on its figures."""

    method: Callable[[argparse.Namespace, torch.device], tuple[Loss, torch.optim.Optimizer, Callable[[], None]]]
    """The loss of two views, the optimizer, and a function to call after each step."""
    dataset: Callable[[argparse.Namespace], Any]
    views_at: int
    """Index of the two views in a batch."""
    note: str = ""


class LightlyMoCo(nn.Module):
    """MoCo v2 of lightly's parts, assembled as in its documentation."""

    def __init__(self, backbone: str) -> None:
        from lightly.loss import NTXentLoss  # type: ignore[import-not-found]
        from lightly.models.modules import MoCoProjectionHead  # type: ignore[import-not-found]

        super().__init__()
        network: Any = torchvision.models.get_model(backbone, weights=None)
        width = network.fc.in_features
        network.fc = nn.Identity()
        self.query = nn.Sequential(network, MoCoProjectionHead(width, width, 128))
        self.key = copy.deepcopy(self.query).requires_grad_(False)
        self.criterion = NTXentLoss(temperature=0.2, memory_bank_size=(65536, 128))

    def forward(self, images_q: Tensor, images_k: Tensor) -> Tensor:
        """The loss."""
        from lightly.models import utils  # type: ignore[import-not-found]

        utils.update_momentum(self.query, self.key, 0.999)
        queries = self.query(images_q)
        with torch.no_grad():
            shuffled, order = utils.batch_shuffle(images_k)
            keys = utils.batch_unshuffle(self.key(shuffled), order)
        return self.criterion(queries, keys)


def lightly_method(
    options: argparse.Namespace, device: torch.device
) -> tuple[Loss, torch.optim.Optimizer, Callable[[], None]]:
    model = LightlyMoCo(options.backbone).to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(model.query.parameters(), lr=0.03, momentum=0.9, weight_decay=1e-4)
    return model, optimizer, lambda: None


def lightly_dataset(options: argparse.Namespace) -> Any:
    from lightly.data import LightlyDataset  # type: ignore[import-not-found]
    from lightly.transforms.moco_transform import MoCoV2Transform  # type: ignore[import-not-found]

    return LightlyDataset(options.jpeg, transform=MoCoV2Transform(input_size=options.image_size))


def solo_method(
    options: argparse.Namespace, device: torch.device
) -> tuple[Loss, torch.optim.Optimizer, Callable[[], None]]:
    from solo.methods.mocov2plus import MoCoV2Plus  # type: ignore[import-not-found]

    model: Any = MoCoV2Plus(
        encoder=options.backbone, backbone_args={}, proj_output_dim=128, proj_hidden_dim=2048, temperature=0.2,
        queue_size=65536 - 65536 % options.batch,  # it takes whole batches only
        base_tau_momentum=0.999, final_tau_momentum=0.999, num_large_crops=2, num_small_crops=0,
        num_classes=1, momentum_classifier=False, classifier_lr=0.03,  # its classifier of labels cannot be left out
        optimizer="sgd", extra_optimizer_args={"momentum": 0.9}, lr=0.03, weight_decay=1e-4, lars=False,
        exclude_bias_n_norm=False, scheduler="none", min_lr=0.0, warmup_start_lr=0.0, warmup_epochs=0,
        batch_size=options.batch, max_epochs=1, accumulate_grad_batches=1,
    )  # fmt: skip
    model = model.to(device, memory_format=torch.channels_last).train()
    labels = torch.zeros(options.batch, dtype=torch.long, device=device)

    def loss(images_q: Tensor, images_k: Tensor) -> Tensor:
        return model.training_step((None, [images_q, images_k], labels), 0)

    def update_keys() -> None:
        # its hook for this needs lightning's Trainer
        for pair in model.momentum_pairs:
            model.momentum_updater.update(*pair)

    return loss, model.configure_optimizers(), update_keys


def solo_dataset(options: argparse.Namespace) -> Any:
    from solo.utils import pretrain_dataloader as solo  # type: ignore[import-not-found]

    # MoCo v2's values in its transform, as in the other rows
    transform = solo.prepare_transform(
        "custom", brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, min_scale=0.2, crop_size=options.image_size
    )
    two = solo.prepare_n_crop_transform([transform], num_crops_per_aug=[2])
    folder = Path(options.jpeg)
    flat = not any(path.is_dir() for path in folder.iterdir())
    return solo.prepare_datasets("custom", two, data_dir=folder, train_dir=".", no_labels=flat)


OTHERS = {
    "lightly": Other(lightly_method, lightly_dataset, views_at=0),
    "solo-learn": Other(
        solo_method, solo_dataset, views_at=1,
        note="its method is MoCo v2+: each view is a query and a key, so an image costs twice the other rows' passes",
    ),
}  # fmt: skip


def read_forever(other: Other, options: argparse.Namespace) -> Iterator[tuple[Tensor, Tensor]]:
    dataset = other.dataset(options)
    batches = max(8, 4 * options.workers)  # an epoch has several for each worker
    repeated = torch.utils.data.ConcatDataset([dataset] * (1 + batches * options.batch // len(dataset)))
    loader = torch.utils.data.DataLoader(
        repeated, options.batch, shuffle=True, drop_last=True, num_workers=options.workers,
        pin_memory=options.device == "cuda", persistent_workers=options.workers > 0,
    )  # fmt: skip
    while True:
        for batch in loader:
            images_q, images_k = batch[other.views_at]
            yield images_q, images_k


def run_other(
    row: str, images: tuple[Tensor, Tensor], options: argparse.Namespace, device: torch.device
) -> dict[str, Any]:
    other = OTHERS[row]
    torch.manual_seed(0)
    loss_of, optimizer, update_keys = other.method(options, device)

    def step(images_q: Tensor, images_k: Tensor) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bf16"):
            loss = loss_of(images_q, images_k)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        update_keys()

    rate = time_turns(lambda: step(*images), options.batch, options.seconds, device, warmup=2)
    result: dict[str, Any] = {"step": rate.each, "memory": peak_memory_gb(device)}
    if options.jpeg:
        source = read_forever(other, options)

        def fed() -> None:
            step(*(x.to(device, memory_format=torch.channels_last, non_blocking=True) for x in next(source)))

        # a worker makes whole batches: what they have ready at first does not count
        ready = max(2, options.workers)
        result["fed"] = time_run(fed, options.batch, options.seconds, device, warmup=ready).median
    return result
