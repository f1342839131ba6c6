"""What the checks of the deployment files stand on: where things are, and what the README documents."""

import os
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
REFERENCE = (ROOT / "docs/reference.md").read_text()


def built(variable: str) -> Path:
    """A program that scripts/check-deployment has built or found."""
    path = os.environ.get(variable)
    if not path:
        raise RuntimeError(f"{variable} is not set; run scripts/check-deployment")
    return Path(path)


def table(heading: str) -> list[list[str]]:
    """The rows of the table under a heading of the README."""
    section = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", README, re.M | re.S)
    if not section:
        raise RuntimeError(f"the README has no section {heading!r}")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in section[1].splitlines()
        if line.startswith("|")
    ]
    return rows[2:]


def exit_codes() -> dict[int, str]:
    """What a supervisor should do, by exit code."""
    codes = {int(code): advice for code, _, advice in table("Exit codes")}
    if not {0, 2, 78} <= codes.keys():
        raise RuntimeError(f"the README's table of exit codes was not understood: {codes}")
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
