"""``tunneltcp completion``: what a shell needs to complete our commands, files and ports."""

from __future__ import annotations

import click
from click.shell_completion import ShellComplete, get_completion_class

__all__ = ["completion_command"]


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion_command(shell: str) -> None:
    """Print what the Tab key needs to complete our commands, files and ports.

    \b
    bash: add to ~/.bashrc                    eval "$(tunneltcp completion bash)"
    zsh:  add to ~/.zshrc                     eval "$(tunneltcp completion zsh)"
    fish: tunneltcp completion fish > ~/.config/fish/completions/tunneltcp.fish
    """  # noqa: D301 - click's mark for lines to keep
    root = click.get_current_context().find_root().command
    kind = get_completion_class(shell)
    assert kind is not None, "click has all three"
    complete = kind(root, {}, "tunneltcp", "_TUNNELTCP_COMPLETE")
    # Not the method of bash's own class: that one starts bash only to look at its version.
    print(ShellComplete.source(complete))
