"""`python -m pinyin_llm` is the command line `pinyin-llm`."""

import sys

from .inference.cli import main


sys.exit(main())
