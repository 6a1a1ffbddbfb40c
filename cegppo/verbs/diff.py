"""`diff`: what differs between two configurations."""

import argparse
from pathlib import Path
from typing import Any


def add(verbs: Any) -> None:
    parser = verbs.add_parser(
        "diff", help="what differs between two configurations",
        description="Print the keys in which two runs, arms or experiments differ, with the values of both.",
    )  # fmt: skip
    for name in ("A", "B"):
        parser.add_argument(name.lower(), metavar=name, help="RUN_FOLDER or EXPERIMENT.yaml")
    parser.set_defaults(run=run, files_alone=True)


def run(options: argparse.Namespace) -> int:
    from analysis import listing
    from analysis.load import Missing

    def settings(name: str) -> dict[str, Any]:
        if Path(name).suffix != ".yaml":
            return listing.settings(Path(name))
        from .. import config  # brings torch, which two run folders do without
        from ..types import BadInput

        try:
            return config.load(name)[0].to_dict()
        except BadInput as error:
            raise Missing(str(error)) from None

    print(listing.difference((options.a, options.b), (settings(options.a), settings(options.b))))
    return 0
