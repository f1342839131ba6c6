"""The commands that units, manifests and Compose services start: whether the program takes them."""

import re
import subprocess
import unittest

import yaml

from project import ROOT, built


def commands() -> dict[str, list[str]]:
    found = {}
    for path in (ROOT / "systemd").glob("*.service"):
        found[path.name] = re.search(r"^ExecStart=voice-sync (.*)$", path.read_text(), re.M)[1].split()
    for path in (ROOT / "examples" / "kubernetes" / "base").glob("*.yaml"):
        if arguments := re.search(r"^ *args: (.*)$", path.read_text(), re.M):
            found[path.name] = yaml.safe_load(arguments[1])
    compose = yaml.safe_load((ROOT / "examples" / "compose" / "compose.yaml").read_text())["services"]
    for name, service in compose.items():
        if service["image"] == "voice-sync":
            found[f"compose {name}"] = service["command"]
        if service.get("healthcheck", {}).get("test", [])[:2] == ["CMD", "/voice-sync"]:
            found[f"compose {name} is healthy"] = service["healthcheck"]["test"][2:]
    return found


def voice_sync(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([built("VOICE_SYNC_TEST_STATIC"), *arguments], text=True, capture_output=True)


class Commands(unittest.TestCase):
    def test_the_program_takes_them(self):
        known = voice_sync("--help").stdout
        self.assertEqual(len(commands()), 8)
        for name, arguments in commands().items():
            with self.subTest(name):
                if not re.search(rf"^  {arguments[0]} ", known, re.M):
                    self.skipTest(f"this version has no {arguments[0]}")
                # What stands before --help is read first.
                done = voice_sync(*arguments, "--help")
                self.assertEqual(done.returncode, 0, done.stderr)

    def test_an_unknown_option_is_refused(self):
        self.assertEqual(voice_sync("sync-once", "--max-run", "5m", "--help").returncode, 2)
        self.assertEqual(voice_sync("sync-once", "--max-runtime", "long", "--help").returncode, 2)
