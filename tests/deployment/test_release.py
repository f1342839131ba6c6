"""What scripts/build promises of each program that is built for others: it has no path of the machine, and it says which commit
and which target it is of. scripts/check-reproducible compares whole releases, which takes minutes."""

import os
import re
import subprocess
import unittest
from pathlib import Path

from project import ROOT, built

CARGO_HOME = Path(os.environ.get("CARGO_HOME", Path.home() / ".cargo"))


def output(*command: str | Path) -> str:
    return subprocess.run(command, text=True, capture_output=True, check=True, cwd=ROOT).stdout.strip()


class Release(unittest.TestCase):
    def setUp(self):
        self.program = built("VOICE_SYNC_TEST_STATIC")

    def test_the_program_has_no_path_of_this_machine(self):
        content = self.program.read_bytes()
        # Messages of panics name sources, so there are paths to replace.
        self.assertIn(b"/cargo/registry/src/", content)
        for path in (ROOT, CARGO_HOME, output("rustc", "--print", "sysroot")):
            at = content.find(f"{path}/".encode())
            self.assertEqual(at, -1, content[max(at, 0) :][:200])

    def test_the_version_names_commit_and_target(self):
        host = re.search(r"^host: (.*)$", output("rustc", "-vV"), re.MULTILINE)[1]
        found = re.fullmatch(r"voice-sync \d+\.\d+\.\d+ \((\w+)(-dirty)?, (\S+)\)", output(self.program, "--version"))
        self.assertIsNotNone(found)
        self.assertEqual(found[3], host)
        if (ROOT / ".git").exists() and "VOICE_SYNC_COMMIT" not in os.environ:
            self.assertEqual(found[1], output("git", "rev-parse", "HEAD")[:10])
        self.assertRegex(output(self.program, "-V"), r"^voice-sync \d+\.\d+\.\d+$")

    def test_all_that_build_for_others_use_the_same_flags(self):
        for path in ("Dockerfile", "scripts/release", "scripts/package", "scripts/check-deployment"):
            text = (ROOT / path).read_text()
            self.assertRegex(text, r"scripts/build (host|\"\$target\") ", path)
            self.assertNotRegex(text, r"cargo (build|rustc) .*--release|crt-static", path)

    def test_a_target_that_cannot_be_built_is_named_with_the_reason(self):
        reason = output("scripts/build", "--can", "sparc64-unknown-linux-gnu")
        self.assertIn("rustup target add sparc64-unknown-linux-gnu", reason)
