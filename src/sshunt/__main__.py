"""``python -m sshunt`` is ``sshunt``."""

import sys

from sshunt.cli import main

sys.exit(main())
