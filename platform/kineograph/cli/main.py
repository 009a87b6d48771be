"""The `kineo` command: finds a command's file only when the command is called, and turns errors into one line."""

from __future__ import annotations

import importlib
import sys
import traceback

import click

from kineograph import __version__
from kineograph.errors import KineographError, is_disk_full

# name -> (module with a click command of that name, one line of help). Nothing heavier than click is imported for --help.
COMMANDS = {
    "demo": ("kineograph.cli.demo", "The whole loop on this machine: raw videos to a graded model."),
    "data": ("kineograph.cli.data", "Make, curate and inspect datasets."),
    "train": ("kineograph.cli.train", "Train a model from a recipe."),
    "generate": ("kineograph.cli.generate", "Make a video from a prompt."),
    "eval": ("kineograph.cli.eval", "Grade a checkpoint and attach the scores to its run."),
    "model": ("kineograph.cli.model", "Sizes and costs of models."),
    "submit": ("kineograph.cli.submit", "Run data, train or eval on a cluster."),
    "jobs": ("kineograph.cli.jobs", "List, follow and stop submitted jobs."),
    "ui": ("kineograph.cli.ui", "Open the dashboard on loopback."),
    "doctor": ("kineograph.cli.doctor", "Tell what works on this machine and how to get the rest."),
}

EPILOG = """\b
Examples:
  kineo demo                                    everything once, on two cores
  kineo data synth raw/ --videos 200 --seed 1   raw videos whose truth is known
  kineo data run demo --input raw/ --out runs/data
  kineo train demo --data runs/data --out runs/train
  kineo generate --checkpoint runs/train --prompt "a red circle moving left" --out red.mp4
  kineo ui runs/                                reports and MLflow in a browser
"""


class LazyGroup(click.Group):
    """A group whose commands live in modules that are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module = importlib.import_module(COMMANDS[name][0])
        command: click.Command = getattr(module, name if name != "eval" else "evaluate")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(cls=LazyGroup, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="kineo")
@click.option("--debug", is_flag=True, help="Show the whole trace of an error.")
def kineo(debug: bool) -> None:
    """Raw videos in; a trained text-to-video diffusion transformer that obeys its prompts out."""


def main(arguments: list[str] | None = None) -> None:
    """Run `kineo` and exit: 0 done, 1 failed, 2 asked wrongly, 130 interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    # --debug is taken anywhere on the line, as people type it last.
    arguments = [a for a in arguments if a != "--debug"]
    try:
        code = kineo.main(arguments, prog_name="kineo", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        _say("interrupted; what is done is kept, run the same command again to go on")
        sys.exit(130)
    except KineographError as error:
        if debug:
            traceback.print_exc()
        _say(str(error))
        sys.exit(error.exit_code)
    except Exception as error:  # noqa: BLE001  whatever it is, a user gets one line
        if debug:
            traceback.print_exc()
        _say(_unexpected(error) + ("" if debug else " (--debug shows the trace)"))
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)


def _unexpected(error: Exception) -> str:
    if is_disk_full(error):
        return "the disk is full: free some space and run the same command again, what is done is kept"
    text = " ".join(str(error).split())
    return f"unexpected {type(error).__name__}: {text[:300]}"


def _say(message: str) -> None:
    click.echo(f"kineo: {message}", err=True)


if __name__ == "__main__":
    main()
