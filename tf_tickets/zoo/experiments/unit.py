"""One experiment as a process: ``python -m tf_tickets.zoo.experiments.unit``.

Takes the experiment as JSON, its directory and, maybe, that of the data.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from tf_tickets.zoo.experiments.experiment import Experiment


def main(arguments: Sequence[str]) -> None:
    """Run what the arguments say."""
    text, directory, *rest = arguments
    Experiment(**json.loads(text)).run(
        directory, data_dir=rest[0] if rest else None
    )


if __name__ == "__main__":
    main(sys.argv[1:])
