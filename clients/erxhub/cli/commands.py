"""How commands look: help that begins with an example, and groups that load a command only when it is used.

Owns the click classes of every verb. Must never: import anything that is slow to import, because `--help` imports it.
"""

from __future__ import annotations

import errno
import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import click

HELP_OPTIONS: Final = {"help_option_names": ["-h", "--help"]}


class _Exampled:
    """What command and group have in common: an example, and help that starts with it."""

    example: str

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write("Example:\n")
        for line in self.example.strip().splitlines():
            formatter.write(f"  {line}\n")
        formatter.write_paragraph()
        super().format_help(ctx, formatter)  # type: ignore[misc]


class ExampleCommand(_Exampled, click.Command):
    """A command with `example`: what somebody would type, one call a line."""

    def __init__(self, *args: Any, example: str, **kwargs: Any) -> None:
        kwargs.setdefault("context_settings", HELP_OPTIONS)
        super().__init__(*args, **kwargs)
        self.example = example


class ExampleGroup(_Exampled, click.Group):
    """A group with `example`, whose commands have one too: `@group.command("name", example="erxhub …")`."""

    command_class = ExampleCommand
    group_class = type

    def __init__(self, *args: Any, example: str, **kwargs: Any) -> None:
        kwargs.setdefault("context_settings", HELP_OPTIONS)
        super().__init__(*args, **kwargs)
        self.example = example


class LazyGroup(ExampleGroup):
    """A group whose commands are named as "module:attribute" and imported when they are used.

    `verbs` maps a name to (module:attribute, one line of help).
    """

    def __init__(self, *args: Any, verbs: Mapping[str, tuple[str, str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.verbs = verbs

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """As click's, but what goes wrong is told as a refusal is: with a code, and in both languages."""
        try:
            ended = super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        except (click.ClickException, click.Abort) as error:
            if not standalone_mode:
                raise
            ended = _told(error, sys.argv[1:] if args is None else args)
        if not standalone_mode:
            return ended
        # click returns what a command wants the exit code to be.
        sys.exit(ended if isinstance(ended, int) else 0)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except OSError as error:
            # A full disk has no name; whatever else has none (a closed pipe, a lost connection) is not about files.
            if error.filename is None and error.errno != errno.ENOSPC:
                raise
            from erxhub.cli.local_errors import unusable

            raise unusable(error) from None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.NoSuchCommand as error:
            # click looks for a similar one among the commands that are loaded.
            raise click.NoSuchCommand(error.command_name, possibilities=self.verbs, ctx=ctx) from None

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.verbs)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.verbs:
            return None
        module, _, attribute = self.verbs[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command), cmd_name
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # click would load every command here to read its help.
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in self.verbs.items()])


def _told(error: click.ClickException | click.Abort, words: Sequence[str]) -> int:
    """Tells of an error on stderr; the exit code."""
    from erxhub.cli.local_errors import Failed, error_data
    from erxhub.cli.output import asks_for_json, say_error

    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        return error.exit_code
    if isinstance(error, click.Abort):
        error = Failed("CLI_INTERRUPTED")
    as_json = asks_for_json(words)
    if isinstance(error, click.UsageError) and error.ctx is not None and not as_json:
        ctx = error.ctx
        click.echo(f"{ctx.get_usage()}\nTry '{ctx.command_path} --help' for help.\n", err=True)
    say_error(error_data(error), "local", as_json=as_json)
    return error.exit_code


def command(name: str, *, example: str, **kwargs: Any) -> Callable[[Callable[..., Any]], ExampleCommand]:
    """A command of its own, outside a group."""
    return click.command(name, cls=ExampleCommand, example=example, **kwargs)


def group(name: str, *, example: str, **kwargs: Any) -> Callable[[Callable[..., Any]], ExampleGroup]:
    """A group: the function says in its docstring what the group is for, and does nothing."""
    return click.group(name, cls=ExampleGroup, example=example, **kwargs)
