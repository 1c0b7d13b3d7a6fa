"""``python -m fcs_utils``."""

import sys

from fcs_utils.cli import console

sys.exit(console())
