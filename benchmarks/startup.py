"""How long until something happens: `diptych --help` and `import diptych`.

Beside them, in the same run, `import open_clip` of the peers' environment. Every measurement is a
new process, its interpreter's start included.

    .venv/bin/python benchmarks/startup.py
"""

import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from common import Ratio, interleaved, machine, ratio_table, write_results

REPEATS = 11
HERE = Path(sys.executable).parent
PEERS = Path(__file__).parent.parent / ".venv-peers" / "bin" / "python"


def seconds_of(*command: str) -> float:
    """Wall time of a process."""
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    """Measure, print, write results/startup.json."""
    python = sys.executable
    seconds = interleaved(
        {
            "diptych --help": lambda: seconds_of(str(HERE / "diptych"), "--help"),
            "import diptych": lambda: seconds_of(python, "-c", "import diptych"),
            "python alone": lambda: seconds_of(python, "-c", "pass"),
        },
        REPEATS,
    )
    seconds |= interleaved(
        {"import open_clip": lambda: seconds_of(str(PEERS), "-c", "import open_clip")}, 3
    )
    middle = {name: median(values) for name, values in seconds.items()}
    peer = middle["import open_clip"]
    ratios = [
        Ratio("diptych --help / 0.4 s", middle["diptych --help"] / 0.4, 1.0),
        Ratio("import diptych / 0.15 s", middle["import diptych"] / 0.15, 1.0),
        Ratio("import diptych / import open_clip", middle["import diptych"] / peer, 1.0),
    ]
    print(ratio_table(ratios))
    for name, value in middle.items():
        print(f"{name:<20}{value:7.3f} s")
    write_results("startup", ratios, {"seconds": seconds, "machine": machine(["diptych", "torch"])})


if __name__ == "__main__":
    main()
