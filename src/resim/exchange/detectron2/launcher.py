"""Detectron2's trainer with our configs: `train` takes the arguments of its own training script."""

from __future__ import annotations

import importlib
import os
import sys
import types
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resim.errors import UserError
from resim.optional_packages import import_optional

CONFIGS = Path(__file__).parent / "configs"
_USAGE = """usage: python -m resim.exchange.detectron2 configs
       python -m resim.exchange.detectron2 train --config-file FILE [options] [KEY VALUE ...]

configs  list the configs that come with resim
train    train or, with --eval-only, score a detector. FILE is a path or the name of one of those configs; KEY VALUE
         pairs change it, such as MODEL.WEIGHTS backbone.pth SOLVER.IMS_PER_BATCH 8. `train --help` lists the options.

Data sets are read from $DETECTRON2_DATASETS (default ./datasets), DensePose ones always from ./datasets, in
the layout of Detectron2."""


def main(argv: Sequence[str]) -> int:
    """Run the command; returns 2 after a user error, which is printed in one line."""
    if not argv or argv[0] in ("-h", "--help"):
        print(_USAGE)
        return 0 if argv else 2
    try:
        if argv[0] == "configs":
            for path in shipped_configs():
                print(path.name)
            return 0
        if argv[0] == "train":
            return _train(list(argv[1:]))
        raise UserError(f"no verb {argv[0]!r}: configs or train")
    except UserError as error:
        print(f"resim.exchange.detectron2: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return 2


def shipped_configs() -> list[Path]:
    """The configs to train with, without the base configs."""
    return sorted(path for path in CONFIGS.glob("*.yaml") if not path.name.startswith("base-"))


def find_config(name: str) -> Path:
    """A config by its path, or one of ours by its name.

    Raises:
        UserError: there is none.
    """
    for path in (Path(name), CONFIGS / name, CONFIGS / f"{name}.yaml"):
        if path.is_file():
            return path
    names = ", ".join(path.name for path in shipped_configs())
    raise UserError(f"--config-file {name}: no such file, nor one of the shipped configs: {names}")


def make_config(path: Path, changes: Sequence[str] = ()) -> Any:
    """Detectron2's config from a file and `KEY VALUE` changes; with DensePose's keys where the file needs them.

    Raises:
        UserError: Detectron2, or DensePose where the file needs it, is not installed; an unknown key or a wrong value.
    """
    module = detectron2("config")
    config = module.get_cfg()
    try:
        settings = module.CfgNode.load_yaml_with_base(str(path)).get("MODEL", {})
        if settings.get("DENSEPOSE_ON"):
            _densepose().add_densepose_config(config)
        config.merge_from_file(str(path))
        config.merge_from_list(list(changes))
    except UserError:
        raise
    except (KeyError, AssertionError, ValueError) as error:
        raise UserError(f"{path}: {str(error.args[0] if error.args else error)[:200]}") from None
    weights = config.MODEL.WEIGHTS
    if weights and "://" not in weights and not Path(weights.partition("?")[0]).is_file():
        raise UserError(f"MODEL.WEIGHTS {weights}: no such file: resim export CHECKPOINT --to detectron2 writes one")
    return config


def detectron2(module: str) -> Any:
    """One of Detectron2's modules.

    Raises:
        UserError: it is not installed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return import_optional(
            f"detectron2.{module}",
            "Detectron2 is not installed: pip install --no-build-isolation "
            "'git+https://github.com/facebookresearch/detectron2.git'",
        )


def run(arguments: Any) -> Any:
    """Train or score in this process; Detectron2's `launch` calls it in each process."""
    engine, comm = detectron2("engine"), detectron2("utils.comm")
    importlib.import_module("resim.exchange.detectron2.heads")
    config = make_config(Path(arguments.config_file), arguments.opts)
    config.freeze()
    engine.default_setup(config, arguments)
    if any("cityscapes" in name for name in (*config.DATASETS.TRAIN, *config.DATASETS.TEST)):
        name_cityscapes()
    trainer_class = _trainer(config)
    if arguments.eval_only:
        model = trainer_class.build_model(config)
        checkpointer = detectron2("checkpoint").DetectionCheckpointer(model, save_dir=config.OUTPUT_DIR)
        checkpointer.resume_or_load(config.MODEL.WEIGHTS, resume=arguments.resume)
        results = trainer_class.test(config, model)
        if comm.is_main_process():
            detectron2("evaluation").verify_results(config, results)
        return results
    trainer = trainer_class(config)
    trainer.resume_or_load(resume=arguments.resume)
    return trainer.train()


def _train(argv: list[str]) -> int:
    engine = detectron2("engine")
    parser = engine.default_argument_parser(epilog=_USAGE)
    parser.prog = "python -m resim.exchange.detectron2 train"
    arguments = parser.parse_args(argv)
    if not arguments.config_file:
        raise UserError("train needs --config-file: a path, or one that `configs` lists")
    path = find_config(arguments.config_file)
    make_config(path, arguments.opts)  # reports user errors before processes start
    arguments.config_file = str(path)
    engine.launch(
        run,
        arguments.num_gpus,
        num_machines=arguments.num_machines,
        machine_rank=arguments.machine_rank,
        dist_url=arguments.dist_url,
        args=(arguments,),
    )
    return 0


def name_cityscapes() -> None:
    """Register the Cityscapes scripts under the name by which Detectron2's sources of 2026 import them.

    Raises:
        UserError: they are not installed.
    """
    *parents, last = ["deeplearning", "projects", "cityscapesApi", "cityscapesscripts"]
    try:
        importlib.import_module(".".join([*parents, last]))
        return
    except ModuleNotFoundError:
        pass
    module = import_optional("cityscapesscripts", "Cityscapes needs its scripts: pip install cityscapesscripts shapely")
    sys.modules[".".join([*parents, last])] = module
    for end in range(len(parents), 0, -1):
        name = ".".join(parents[:end])
        package: Any = sys.modules.setdefault(name, types.ModuleType(name))
        package.__path__ = getattr(package, "__path__", [])
        setattr(package, [*parents, last][end], module)
        module = package


def _densepose() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return import_optional(
            "densepose",
            "this config needs Detectron2's DensePose project: pip install --no-build-isolation "
            "'git+https://github.com/facebookresearch/detectron2.git#subdirectory=projects/DensePose'",
        )


def _trainer(config: Any) -> Any:
    """Detectron2's trainer with the evaluator of each data set; DensePose's trainer where DensePose is on."""
    if config.MODEL.get("DENSEPOSE_ON", False):
        # its evaluation downloads a file with a timeout, an argument that some path handlers reject
        detectron2("utils.file_io").PathManager.set_strict_kwargs_checking(False)
        return importlib.import_module("densepose.engine").Trainer
    engine, evaluation, catalog = detectron2("engine"), detectron2("evaluation"), detectron2("data").MetadataCatalog

    class Trainer(engine.DefaultTrainer):
        """Detectron2's default trainer, with evaluators."""

        @classmethod
        def build_evaluator(cls, cfg: Any, dataset_name: str, output_folder: str | None = None) -> Any:
            """The official score of a data set of COCO, VOC or Cityscapes."""
            folder = output_folder or os.path.join(cfg.OUTPUT_DIR, "inference")  # noqa: PTH118 - theirs may be a URL
            kind = catalog.get(dataset_name).evaluator_type
            if kind == "coco":
                return evaluation.COCOEvaluator(dataset_name, output_dir=folder)
            if kind == "pascal_voc":
                return evaluation.PascalVOCDetectionEvaluator(dataset_name)
            if kind == "cityscapes_instance":
                return evaluation.CityscapesInstanceEvaluator(dataset_name)
            raise UserError(f"data set {dataset_name}: no evaluator for {kind}; one of coco, pascal_voc, cityscapes")

    return Trainer
