"""`avtd3 push` and `avtd3 pull`."""

from typing import Annotated

import typer

from avtd3.configs.commands import options as opt
from avtd3.configs.commands.console import running
from avtd3.store.errors import ConfigError, abbreviate

SourceArgument = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="Dataset, or directory of policies: a path, or a URL such as s3://BUCKET/PATH.",
    ),
]
DestinationArgument = Annotated[
    str, typer.Argument(metavar="DEST", help="Path or URL; created if missing.")
]
LimitOption = Annotated[
    str | None,
    typer.Option("--limit", metavar="RATE", help="Largest bandwidth, such as 20MB/s."),
]


def push(
    source: SourceArgument,
    destination: DestinationArgument,
    limit: LimitOption = None,
    removals: Annotated[
        bool,
        typer.Option(
            "--removals",
            help="Then remove from the URL DEST what avtd3 store prune and compact have removed "
            "from the directory SOURCE.",
        ),
    ] = False,
    as_json: opt.JsonOption = False,
) -> None:
    """Copy a dataset or policies to a URL or directory.

    Both places may be either. Every byte is verified. To continue, run the same command again:
    what is there is skipped, and so is what was removed there. Endpoint, region and credentials
    come from the usual environment variables and files, such as AWS_PROFILE. Exits with 1 if
    something was not copied. See docs/fleet.md.
    """
    _transfer(source, destination, limit, as_json, removals)


def pull(
    source: SourceArgument,
    destination: DestinationArgument,
    limit: LimitOption = None,
    as_json: opt.JsonOption = False,
) -> None:
    """Copy a dataset or policies from a URL or directory.

    Both places may be either. The copy is an ordinary dataset. Every byte is verified. To
    continue, run the same command again: what is there is skipped. Exits with 1 if something was
    not copied. See docs/fleet.md.
    """
    _transfer(source, destination, limit, as_json)


def _transfer(
    source: str, destination: str, limit: str | None, as_json: bool, removals: bool = False
) -> None:
    from avtd3.store.remote.transfer import transfer

    bytes_per_s = 0.0
    if limit is not None:
        bytes_per_s = opt.parse_bytes(limit.removesuffix("/s"))
        if not bytes_per_s:
            raise ConfigError(f"--limit is {abbreviate(limit)}, expected above 0, such as 20MB/s")
    with running() as control:
        report = transfer(
            source, destination, bytes_per_s=bytes_per_s, removals=removals, **control
        )
    opt.finish(report, as_json, is_no=report.stopped or report.problems)
