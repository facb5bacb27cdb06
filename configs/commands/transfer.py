"""`avtd3 push` and `avtd3 pull`."""

from typing import Annotated

from avtd3.configs.commands import options as opt
from avtd3.configs.commands.console import running
from avtd3.store.errors import ConfigError, abbreviate

SourceArgument = Annotated[
    str,
    opt.argument(
        "SOURCE", "Dataset, or directory of policies: a path, or a URL such as s3://BUCKET/PATH."
    ),
]
DestinationArgument = Annotated[str, opt.argument("DEST", "Path or URL; created if missing.")]
LimitOption = Annotated[
    str | None, opt.option("--limit RATE", "Maximum bandwidth, such as 20MB/s.")
]


def push(
    source: SourceArgument,
    destination: DestinationArgument,
    limit: LimitOption = None,
    removals: Annotated[
        bool,
        opt.option(
            "--removals",
            "Then remove from the URL DEST what avtd3 store prune and compact have removed "
            "from the directory SOURCE.",
        ),
    ] = False,
    as_json: opt.JsonOption = False,
) -> None:
    """Copy a dataset or policies to a URL or directory.

    SOURCE and DEST may each be a path or a URL. Every byte is verified. To continue, run the same
    command again: it skips what is at DEST already, and what was removed there on purpose.
    Endpoint, region and credentials come from the usual environment variables and files, such as
    AWS_PROFILE. Exits with 1 if something was not copied. See docs/fleet.md.
    """
    _transfer(source, destination, limit, as_json, removals)


def pull(
    source: SourceArgument,
    destination: DestinationArgument,
    limit: LimitOption = None,
    as_json: opt.JsonOption = False,
) -> None:
    """Copy a dataset or policies from a URL or directory.

    SOURCE and DEST may each be a path or a URL. The copy is an ordinary dataset. Every byte is
    verified. To continue, run the same command again: it skips what is at DEST already. Exits with
    1 if something was not copied. See docs/fleet.md.
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
