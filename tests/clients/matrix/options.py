"""Options that the suites of clients, of S3A and of Spark share."""

import os
import sys
from pathlib import Path

TARGET = Path(__file__).resolve().parent.parent.parent.parent / "target"


def add_program_and_cache(parser, kept):
    parser.add_argument("--esker", type=Path, metavar="PATH",
                        default=os.environ.get("ESKER_BIN", TARGET / "debug" / "esker"),
                        help="the program under test (default $ESKER_BIN, or target/debug/esker)")
    parser.add_argument("--cache", type=Path, metavar="DIR",
                        default=os.environ.get("ESKER_TEST_CACHE", TARGET / "test-cache"),
                        help=f"where {kept} (default $ESKER_TEST_CACHE, or target/test-cache)")


def parsed(parser):
    """The options. Nothing is relative in them that somebody else reads."""
    options = parser.parse_args()
    options.cache = Path(options.cache).absolute()
    return options


def need_program(options):
    """Ends with status 3 if there is no program to test."""
    if not os.access(options.esker, os.X_OK):
        print(f"no program at {options.esker}: run `cargo build`, or name one with --esker or ESKER_BIN",
              file=sys.stderr)
        sys.exit(3)
