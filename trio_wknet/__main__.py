"""The command line: `python -m trio_wknet`, also installed as `trio-wknet`."""

from __future__ import annotations

import sys

from trio_wknet import __version__

# What a shell reports of a command that Ctrl-C ended: 128 + SIGINT. Click's own is 1.
INTERRUPTED = 130


def main() -> None:
    """Run the command line; it ends in `SystemExit`."""
    try:
        import click

        from trio_wknet._cli.bench import bench
        from trio_wknet._cli.demo.command import demo
        from trio_wknet._cli.top import top
    except ModuleNotFoundError as missing:
        package = (missing.name or "").partition(".")[0]
        if package not in ("click", "rich"):
            raise
        sys.exit(f"the command line needs {package}: pip install 'trio-wknet[cli]'")
    commands = click.Group(
        "trio-wknet",
        commands=[bench, demo, top],
        help="Tools around trio_wknet, a transport for Trio.",
    )
    commands = click.version_option(__version__)(commands)
    try:
        sys.exit(commands.main(prog_name="trio-wknet", standalone_mode=False))
    except click.ClickException as failure:
        failure.show()
        sys.exit(failure.exit_code)
    except click.Abort:
        click.echo("Aborted!", err=True)
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
