"""Weights from other programs, and to them.

Reading: `load` (`resim.load`, `resim.load_published`), `weights` (`read_weights`), `encoders`, `training_state` and
`queues` (a run that starts from a file), `sources` (what may be named as weights).
`files/` opens files without running any code in them; `networks/` recognises the network in a file, its FPN, its input
and its strides; `names` is the only translation of names; `licence` determines the licence of a file.

Writing: `export`, with one writer per target (`to_torchvision`, `to_detectron2`, `to_timm`, `to_safetensors` for files
and the hub, `to_onnx`); `targets` lists the targets, `staging` moves files into place once `features` are verified,
`fpn_norms` adds or folds norms, `card` is the model card, `state_files` writes a state_dict.
`detectron2/` fine-tunes in Detectron2.
"""
