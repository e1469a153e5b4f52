"""Run the command line: ``python -m experiment_service``."""

import sys

from experiment_service.cli import main

sys.exit(main())
