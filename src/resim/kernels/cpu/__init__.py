"""Training passes of ResNets in bfloat16 on a CPU, where they wait for memory: fewer passes over it, in C kernels.

The kernels are compiled on first use by the machine's own C compiler; without one the modules run as they are.
"""
