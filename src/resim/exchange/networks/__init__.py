"""Which network a file contains.

`state_dicts` lists the dictionaries of tensors, `recognise` takes the network, `pyramids` its FPN, and `architecture`
checks names and shapes. `input_evidence`, `input_forms`, `strides` and `settings` determine its input and
strides, which names and shapes do not show. `unknown_networks` describes a file without a ResNet, `describe` any other.
"""
