"""`python -m medtransfer`."""

import sys

from medtransfer.cli import main

sys.exit(main())
