"""`avtd3 config`: show settings and their schema."""

from typing import Annotated

import typer

from avtd3.configs.commands.console import print_answer
from avtd3.configs.commands.options import ConfigOption, SetOption, answer

app = typer.Typer(
    help="Show settings, presets and their schema.", no_args_is_help=True, rich_markup_mode=None
)

SectionArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="SECTION",
        help="collect, learn, audit, evaluate or demo. Default: all sections.",
        show_default=False,
    ),
]


@app.command()
def show(
    section: SectionArgument = None, config: ConfigOption = None, set_: SetOption = None
) -> None:
    """Print the resolved settings as YAML.

    The output contains every setting, with defaults, and can be used as a --config file.
    """
    from avtd3.configs.load import dump_sections

    print_answer(dump_sections(section, config, set_ or ()))


@app.command()
def schema(section: SectionArgument = None) -> None:
    """Print the JSON Schema of configuration files.

    Editors that read it complete and check configuration files as you type.
    """
    from avtd3.configs.load import json_schema

    answer(json_schema(section), True, "")


@app.command()
def presets() -> None:
    """List the presets that --config accepts."""
    from avtd3.configs.load import presets as list_presets

    print_answer("\n".join(list_presets()))
