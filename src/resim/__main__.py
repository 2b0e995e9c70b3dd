"""`python -m resim`, for torchrun: `torchrun --nproc-per-node 8 -m resim pretrain DIR`."""

import sys

from resim.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
