"""`python -m resim.exchange.detectron2 configs`, `... train --config-file NAME MODEL.WEIGHTS FILE`."""

import sys

from resim.exchange.detectron2.launcher import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
