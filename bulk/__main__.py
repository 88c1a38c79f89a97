"""`python -m pinyin_llm.bulk`, also `pinyin-llm bulk`."""

import sys

from . import main


sys.exit(main())
