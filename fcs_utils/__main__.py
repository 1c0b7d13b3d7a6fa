"""``python -m fcs_utils``."""

import sys

from fcs_utils.cli import main

sys.exit(main())
