"""Prints the licenses of the crates that are linked into voice-sync, sorted by name, with the text of each."""

import json
import re
import subprocess
import sys
from pathlib import Path

NAMES = re.compile(r"(licen[cs]e|copying|unlicense|notice)", re.IGNORECASE)


def main() -> None:
    tree = subprocess.run(
        ["cargo", "tree", "--locked", "-e", "normal", "--prefix", "none", "--format", "{p}", "-p", "voice-sync"],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    linked = {tuple(line.split()[:2]) for line in tree.splitlines() if line}
    metadata = json.loads(
        subprocess.run(["cargo", "metadata", "--locked", "--format-version", "1"], check=True, capture_output=True, text=True).stdout
    )
    missing = []
    for package in sorted(metadata["packages"], key=lambda package: (package["name"], package["version"])):
        if (package["name"], f"v{package['version']}") not in linked or package["source"] is None:
            continue
        folder = Path(package["manifest_path"]).parent
        texts = sorted(path for path in folder.iterdir() if path.is_file() and NAMES.search(path.name))
        print(f"{'=' * 80}\n{package['name']} {package['version']}: {package['license'] or 'see the text'}\n")
        for text in texts:
            print(text.read_text(errors="replace").strip() + "\n")
        if not texts and not package["license"]:
            missing.append(package["name"])
    if missing:
        sys.exit(f"no license is known of: {', '.join(missing)}")


main()
