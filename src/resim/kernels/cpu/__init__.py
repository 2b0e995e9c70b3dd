"""C kernels for training ResNets in bfloat16 on a CPU: they fuse passes over memory, which limits a step there.

The kernels are compiled on first use by the C compiler of the machine; without one, PyTorch's modules run instead.
"""
