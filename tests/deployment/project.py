"""What the checks of the deployment files share: where things are, and what the reference documents."""

import os
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "docs/reference"
CONFIGURATION = (REFERENCE / "configuration.md").read_text()
EXIT_CODES = REFERENCE / "exit-codes.md"


def built(variable: str) -> Path:
    """A program that scripts/check-deployment has built or found."""
    path = os.environ.get(variable)
    if not path:
        raise RuntimeError(f"{variable} is not set; run scripts/check-deployment")
    return Path(path)


def table(page: Path) -> list[list[str]]:
    """The rows of the table of a page that has one."""
    lines = page.read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return rows[2:]


def exit_codes() -> dict[int, str]:
    """What a supervisor should do, by exit code."""
    codes = {int(code): advice for code, _, advice in table(EXIT_CODES)}
    if not {0, 2, 78} <= codes.keys():
        raise RuntimeError(f"the table of {EXIT_CODES} was not understood: {codes}")
    return codes


def never_retried() -> set[int]:
    return {code for code, advice in exit_codes().items() if advice == "do not retry"}


def seconds(text: str) -> int:
    """A duration as systemd and voice-sync write it, of one unit."""
    number, unit = re.fullmatch(r"(\d+)(s|min|m|h)", text).groups()
    return int(number) * {"s": 1, "m": 60, "min": 60, "h": 3600}[unit]


# After SIGTERM the daemon finishes within this.
SECONDS_TO_STOP = 25
# A start may wait so long for the database.
SECONDS_TO_OPEN = 60
