"""``python -m espnet_bimamba``: the command ``espnet-bimamba`` of this Python."""

import sys

from espnet_bimamba.cli import main

if __name__ == "__main__":
    sys.exit(main())
