"""licenses.py TARGET [--static]: prints the licenses of what is linked into voice-sync for TARGET: the crates by name, with each
text once; Rust's standard library; and the C library, if it is linked statically. The same crates and the same version of Rust
give the same bytes."""

import html
import json
import re
import subprocess
import sys
from pathlib import Path

NAMES = re.compile(r"(licen[cs]e|copying|copyright|unlicense|notice)", re.IGNORECASE)
OWN = Path(__file__).resolve().parents[1]
LINE = "=" * 100


def output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=OWN).stdout


def linked(target: str) -> list[dict]:
    """The packages whose code is in the program: procedural macros, build scripts and tests are not."""
    edges = ("-p", "voice-sync", "-e", "normal,no-proc-macro", "--target", target)
    tree = output("cargo", "tree", "--locked", *edges, "--prefix", "none", "--format", "{p}")
    names = {tuple(line.split()[:2]) for line in tree.splitlines() if line}
    packages = json.loads(output("cargo", "metadata", "--locked", "--format-version", "1"))["packages"]
    found = [p for p in packages if p["source"] and (p["name"], f"v{p['version']}") in names]
    return sorted(found, key=lambda package: (package["name"], package["version"]))


def texts(package: dict) -> list[str]:
    folder = Path(package["manifest_path"]).parent
    paths = {path for path in folder.iterdir() if path.is_file() and NAMES.match(path.name)}
    if package["license_file"]:
        paths.add(folder / package["license_file"])
    return [path.read_text(errors="replace").strip() for path in sorted(paths)]


def mit(holders: str) -> str:
    text = (OWN / "LICENSE-MIT").read_text().strip()
    return re.sub(r"^Copyright.*$", f"Copyright (c) {holders}", text, flags=re.MULTILINE)


def usual(package: dict) -> list[str]:
    """The usual text of MIT or Apache-2.0, for a crate that has one of these licenses and no text in its package."""
    named = re.split(r"[\s/()]+", package["license"] or "")
    if "Apache-2.0" in named and "AND" not in named:
        return [(OWN / "LICENSE-APACHE").read_text().strip()]
    if named == ["MIT"]:
        return [mit(", ".join(package["authors"]) or f"the authors of {package['name']}")]
    return []


def standard_library() -> str:
    page = Path(output("rustc", "--print", "sysroot").strip()) / "share/doc/rust/COPYRIGHT-library.html"
    if not page.exists():
        return "Licensed under MIT or Apache-2.0. Copyright (c) The Rust Project Developers, https://thanks.rust-lang.org."
    text = html.unescape(re.sub(r"<[^>]*>", "", page.read_text().partition("<body>")[2]))
    return re.sub(r"\s*\n\s*\n\s*", "\n\n", text).strip()


def c_library(target: str, options: list[str]) -> dict[str, str]:
    """The one that is linked statically, and its text."""
    if target.endswith("-musl"):
        return {"musl: MIT": mit("2005-2020 Rich Felker, et al.")}
    if "--static" in options:
        return {"The GNU C library: LGPL-2.1-or-later": "See https://www.gnu.org/software/libc/ for the text and the source."}
    return {}


def main() -> None:
    target, *options = sys.argv[1:]
    by_text: dict[str, list[str]] = {}
    unknown = []
    print("What is linked into voice-sync, and its licenses. The texts follow.\n")
    for package in linked(target):
        name = f"{package['name']} {package['version']}"
        print(f"{name}: {package['license'] or 'see the text'}")
        found = texts(package) or usual(package)
        if not found:
            unknown.append(name)
        for text in found:
            by_text.setdefault(text, []).append(name)
    if unknown:
        sys.exit(f"no text of a license is known for: {', '.join(unknown)}")
    rust = f"Rust's standard library {output('rustc', '--version').split()[1]}: MIT OR Apache-2.0"
    others = {rust: standard_library()} | c_library(target, options)
    print("\n".join(others))
    for text, names in by_text.items():
        print(f"\n{LINE}\n{', '.join(names)}\n\n{text}")
    for name, text in others.items():
        print(f"\n{LINE}\n{name}\n\n{text}")


if __name__ == "__main__":
    main()
