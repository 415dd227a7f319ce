"""`cm3 completion`: print a shell completion script. Needs no torch."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from cm3apps.cli import registry_of

HELP = "print a shell completion script for commands, options and names"
EXAMPLE = """  cm3 completion bash > ~/.local/share/bash-completion/completions/cm3
  cm3 completion zsh > ~/.zfunc/_cm3        # with fpath+=~/.zfunc before compinit in ~/.zshrc
  cm3 completion fish > ~/.config/fish/completions/cm3.fish

the script holds the current names: write it again after installing or removing plugins"""


def configure(parser: ArgumentParser) -> None:
    """The shell."""
    parser.add_argument("shell", choices=["bash", "zsh", "fish"], help="which shell")


def run(args: Namespace) -> int:
    """Print it."""
    from cm3apps.cli._completion import script

    print(script(args.shell, registry_of(args)), end="")
    return 0
