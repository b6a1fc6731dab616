"""``python -m ops up|down|status|env|secrets``: the local stack of real servers."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from jobs.config import CONF_DIR, ConfigError, load
from ops.environment import compose_secrets, exports
from ops.service import StackError
from ops.stack import Stack

INTERRUPTED = 130


def _tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _status(stack: Stack) -> int:
    seen = stack.status()
    for one in seen:
        _tell(f"{one.service.name:<14}{one.health:<13}{f'pid {one.pid}' if one.pid else '':<12}{one.service.url or one.log}")
    if not seen:
        _tell(f"no stack under {stack.home}: start it (make up)")
    return 0 if seen and all(one.health == "healthy" for one in seen) else 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        Exit status: 0; 1 if a server does not start, or ``status`` found one that is not healthy; 2 for settings that cannot be used;
        130 if interrupted.
    """
    parser = argparse.ArgumentParser(prog="python -m ops", description="PostgreSQL, Redis, MLflow and Airflow on this machine.")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--config", type=Path, default=None, help="settings file; default $DIG_CONFIG, then conf/local.yaml")
    shared.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override one setting; may be repeated")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("up", parents=[shared], help="start what does not run, wait until all is healthy")
    down = commands.add_parser("down", parents=[shared], help="stop all of it; the data stay")
    down.add_argument("--purge", action="store_true", help="also remove the stack's folder: databases, registry, history, secrets")
    commands.add_parser("status", parents=[shared], help="exit status 0 only if all is healthy")
    commands.add_parser("env", parents=[shared], help="export lines for a shell that talks to the stack; they hold secrets")
    commands.add_parser("secrets", help="fresh secrets for compose.yaml, as lines of .env")
    args = parser.parse_args(argv)
    if args.command == "secrets":
        sys.stdout.write(compose_secrets())
        return 0
    place = args.config or Path(os.environ.get("DIG_CONFIG") or CONF_DIR / "local.yaml")
    try:
        stack = Stack(load(place, args.set), place, args.set)
        if args.command == "status":
            return _status(stack)
        if args.command == "env":
            sys.stdout.write(exports(stack.environment()))
        elif args.command == "up":
            stack.up(_tell)
        else:
            stack.down(_tell, purge=args.purge)
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except StackError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; what has started keeps running until `make down`\n")
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
