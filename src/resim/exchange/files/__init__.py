"""Files of weights, opened without running any code in them.

`contents` opens a file and its shards; `torch_files` reads files of torch.save and TorchScript; `pickles` interprets
pickles with the makers of `pickle_makers`, which return the values of `pickle_values`; `modules` replaces saved modules
by their state_dicts.
"""
