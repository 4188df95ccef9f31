"""Before anything is imported: shape annotations become checks, and threads are few."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from jaxtyping import install_import_hook

install_import_hook("diptych", "beartype.beartype")
