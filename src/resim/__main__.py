"""`python -m resim`, for torchrun: `torchrun --nproc-per-node 8 -m resim pretrain DIR`."""

import sys

from resim.cli.main import main
from resim.exit_codes import report

if __name__ == "__main__":
    try:
        code = main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    sys.exit(report(code))
