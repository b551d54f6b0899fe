"""`python -m tests.parity FOLDER`."""

import sys

from tests.parity.runner import main

sys.exit(main(sys.argv[1:]))
