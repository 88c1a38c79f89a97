"""`python -m pinyin_llm.bulk`, also `pinyin-llm bulk`."""

import sys

from ..inference.console import report_errors
from . import main


sys.exit(report_errors(main))
