"""`avtd3 replay-inspect --scores`: driving scores from the stored events, as text and on a page."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from avtd3.configs.command_line import section

if TYPE_CHECKING:
    from avtd3.collect.stored_scores import ScoreReport
    from avtd3.store.render.markup import Markup


def judge(
    datasets: Sequence[Path],
    config: str | None,
    overrides: list[str] | None,
    should_stop: Callable[[], bool],
) -> "ScoreReport":
    """Score the datasets' episodes by the table that ``evaluate.penalties`` names.

    Raises:
        Avtd3Error: A path is no dataset, or there is no table of this name.
    """
    from avtd3.collect.leaderboard import penalty_table
    from avtd3.collect.stored_scores import judge_datasets

    table = penalty_table(section("evaluate", config, overrides).penalties)
    return judge_datasets(datasets, table, should_stop)


def page_section(report: "ScoreReport") -> tuple[str, "Markup"]:
    """Title and content of the page's section of scores."""
    from avtd3.collect.leaderboard import NOT_OBSERVED
    from avtd3.store.render.markup import element
    from avtd3.store.render.sections import card
    from avtd3.store.render.tables import table

    heads, rows = report.table()
    note = (
        "Driving score: completion times infraction penalty, by the definitions of CARLA's "
        f"{report.version}. Not observed: {', '.join(NOT_OBSERVED)}."
    )
    cards = []
    if rows:
        drivers = table(heads, rows, caption="Driving scores by driver", figures=heads[1:])
        cards.append(card("By driver", drivers, note, wide=True))
    if listed := [[name, f"{rate:.2f}"] for name, rate in report.rates()]:
        rates = table(["infraction", "per km"], listed, caption="Infractions", figures=["per km"])
        cards.append(card("Infractions", rates, "Per kilometre of route completed."))
    if report.unscored:
        lines = [[entry.segment, entry.line().partition(": ")[2]] for entry in report.unscored]
        caption = "Episodes without a score"
        cards.append(card(caption, table(["segment", "why"], lines, caption=caption), wide=True))
    return "Driving scores", element("div", cards, class_="cards")
