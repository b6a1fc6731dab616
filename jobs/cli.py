"""The command ``dig``: run the pipeline, look at what it made, ask it for recommendations.

Imports that take time stand inside the commands, so that ``dig --help`` answers at once.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from jobs import cli_index, cli_lake, cli_mirror, cli_package, cli_promote, cli_show
from jobs.cli_options import ConfigOption, SetOption, settings

if TYPE_CHECKING:
    from jobs.answers import Answer

app = typer.Typer(
    name="dig",
    help="Retrain the recommender end to end, look at what is there, and ask it for recommendations.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.add_typer(cli_show.config_app, name="config")
app.add_typer(cli_lake.lake_app, name="lake")
app.add_typer(cli_show.index_app, name="index")
app.command()(cli_promote.promote)
app.command()(cli_promote.rollback)
cli_show.index_app.command("log")(cli_promote.index_log)
cli_mirror.add_to(cli_show.index_app)
cli_index.add_to(cli_show.index_app)
cli_show.index_app.command("package")(cli_package.package)

WRONG, INTERRUPTED = 2, 130
UserOption = Annotated[str, typer.Option("--user", "-u", help="User id, as in the source.")]


@app.command()
def retrain(
    date: Annotated[str | None, typer.Option(help="Logical date, YYYY-MM-DD; default: dataset.default_date.", metavar="DATE")] = None,
    config: ConfigOption = None,
    sets: SetOption = None,
) -> None:
    """Run the DAGs for one date: features, training, evaluation, registry, gate, SID index.

    The first run builds every day that the training window needs; later runs only what is missing or out of date. If the gate refuses
    the new model, the champion and the index stay as they were and the exit status is 1.
    """
    from jobs.cli_run import retrain as run

    raise typer.Exit(run(date, config, sets or []))


@app.command()
def recommend(
    user: UserOption,
    k: Annotated[int | None, typer.Option("-k", min=1, help="How many products; default: retrieve.k.")] = None,
    new: Annotated[bool, typer.Option("--new", help="Leave out what the user bought before.")] = False,
    config: ConfigOption = None,
    sets: SetOption = None,
) -> None:
    """Recommend products to a user, from the current index generation."""
    force = settings(config, sets)
    from jobs.answers import Recommender

    _answer(Recommender.open(force).recommend(user, k, exclude_bought=new))


@app.command()
def rank(
    user: UserOption,
    items: Annotated[str, typer.Option(help="Item ids, separated by commas.")],
    config: ConfigOption = None,
    sets: SetOption = None,
) -> None:
    """Put some products in the order that suits a user."""
    force = settings(config, sets)
    wanted = [item.strip() for item in items.split(",") if item.strip()]
    if not wanted:
        raise typer.BadParameter(f"{items!r}: expected item ids separated by commas", param_hint="--items")
    from jobs.answers import Recommender

    _answer(Recommender.open(force).rank(user, wanted))


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on; default: serve.host. Beyond loopback a token is needed.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port, 0 for a free one; default: serve.port.")] = None,
    index: Annotated[str | None, typer.Option(help="Index folder; default: paths.index.", metavar="FOLDER")] = None,
    config: ConfigOption = None,
    sets: SetOption = None,
) -> None:
    """Answer over HTTP from the generation that CURRENT names, and follow it; $DIG_SERVE_TOKEN guards the answers."""
    from jobs.cli_serve import serve as run

    run(settings(config, sets), host, port, index)


@app.command()
def version() -> None:
    """Version of this package."""
    from importlib.metadata import version as installed

    Console().print(installed("dig-pipeline"), highlight=False)


def _answer(answer: Answer) -> None:
    from jobs.tables import answer_table, history_line

    console = Console()
    if answer.note:
        console.print(answer.note, style="yellow")
    if answer.history:
        console.print(history_line(answer), style="dim", highlight=False)
    console.print(answer_table(answer))


def _terminated(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt  # the same way out as Ctrl-C: whatever was started is stopped


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``dig``.

    Returns:
        Exit status: 0; 1 if the run failed; 2 for what the user can mend, said in one line; 130 if interrupted.
    """
    signal.signal(signal.SIGTERM, _terminated)
    try:
        status = app(args=list(sys.argv[1:] if argv is None else argv), prog_name="dig", standalone_mode=False)
    except typer.TyperException as error:
        return _say(error.format_message(), WRONG)
    except (ValueError, RuntimeError) as error:
        if not isinstance(error, _explained()):
            raise
        return _say(str(error), WRONG)
    if status == INTERRUPTED:  # what Typer makes of a KeyboardInterrupt
        return _say("interrupted", INTERRUPTED)
    return status if isinstance(status, int) else 0


def _explained() -> tuple[type[Exception], ...]:
    """Errors whose message is for the user; anything else is a fault of ours and keeps its traceback."""
    from dig_models.features import FeatureSpecMismatch
    from dig_models.index.generation import IndexCorrupt, IndexMissing, NotIndexable
    from dig_models.index.mirror import MirrorFailed
    from dig_models.serve.errors import CannotServe
    from jobs.config import ConfigError
    from jobs.entry import JobError

    return CannotServe, ConfigError, JobError, FeatureSpecMismatch, IndexMissing, IndexCorrupt, NotIndexable, MirrorFailed


def _say(message: str, status: int) -> int:
    Console(stderr=True, soft_wrap=True).print(Text.assemble(("dig: ", "bold red"), message))
    return status


if __name__ == "__main__":
    sys.exit(main())
