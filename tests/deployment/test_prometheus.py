"""The rules under examples/prometheus/ and the dashboard under examples/grafana/: that Prometheus accepts the rules,
that they say what they should when they should, and that every metric exists."""

import json
import re
import subprocess
import tempfile
import unittest
from pathlib import Path

import yaml

from project import ROOT, built

PROMETHEUS = ROOT / "examples" / "prometheus"
RULES = PROMETHEUS / "voice-sync.rules.yml"
TESTS = PROMETHEUS / "voice-sync.rules.test.yml"
DASHBOARD = ROOT / "examples" / "grafana" / "voice-sync.json"
OPERATIONS = ROOT / "docs" / "operations.md"
NAME = re.compile(r"\bvoice_sync_\w+")


def promtool(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run(["promtool", *map(str, arguments)], text=True, capture_output=True)


def shown() -> set[str]:
    """The series that a pass writes, as --listen shows them, too."""
    with tempfile.TemporaryDirectory() as directory:
        database, metrics = Path(directory) / "app.db", Path(directory) / "voice_sync.prom"
        ddl = """CREATE TABLE voices (id text PRIMARY KEY, user_id text, elevenlabs_voice_id text, status text,
                                      preview_url text, completed_at text, created_at text)"""
        import sqlite3

        with sqlite3.connect(database) as connection:
            connection.execute(ddl)
        subprocess.run(
            [built("VOICE_SYNC_TEST_STATIC"), "sync-once", "--metrics-file", metrics],
            env={"DATABASE_URL": f"sqlite:///{database}", "ELEVENLABS_API_KEY": "any"},
            check=True,
            capture_output=True,
        )
        lines = metrics.read_text().splitlines()
    return {NAME.match(line)[0] for line in lines if line.startswith("voice_sync_")}


class Rules(unittest.TestCase):
    def test_prometheus_accepts_them(self):
        done = promtool("check", "rules", RULES)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_they_say_what_they_should(self):
        done = promtool("test", "rules", TESTS)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_each_is_tested_both_ways_and_documented(self):
        rules = {rule["alert"] for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]}
        cases = [case for test in yaml.safe_load(TESTS.read_text())["tests"] for case in test["alert_rule_test"]]
        self.assertEqual(rules, {case["alertname"] for case in cases if case.get("exp_alerts")})
        self.assertEqual(rules, {case["alertname"] for case in cases if not case.get("exp_alerts")})
        self.assertEqual(rules, set(re.findall(r"^\| `(VoiceSync\w+)` \|", OPERATIONS.read_text(), re.M)))


class Metrics(unittest.TestCase):
    def test_all_exist(self):
        there = shown()
        rules = yaml.safe_load(RULES.read_text())["groups"][0]["rules"]
        named = {"rules": " ".join(rule["expr"] for rule in rules)}
        dashboard = json.loads(DASHBOARD.read_text())
        named["dashboard"] = " ".join(target["expr"] for panel in dashboard["panels"] for target in panel["targets"])
        named["dashboard's variables"] = json.dumps(dashboard["templating"])
        named["tests of rules"] = TESTS.read_text().replace("voice-sync", "")
        for where, text in named.items():
            names = set(NAME.findall(text))
            self.assertTrue(names, where)
            self.assertEqual(names - there, set(), where)

    def test_the_dashboard_shows_all_of_them(self):
        text = DASHBOARD.read_text()
        families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown()}
        self.assertEqual({name for name in families if name not in text}, set())


class Dashboard(unittest.TestCase):
    def test_panels_do_not_overlap(self):
        panels = json.loads(DASHBOARD.read_text())["panels"]
        self.assertEqual(len({panel["id"] for panel in panels}), len(panels))
        taken = {}
        for panel in panels:
            at = panel["gridPos"]
            self.assertLessEqual(at["x"] + at["w"], 24, panel["title"])
            for x in range(at["x"], at["x"] + at["w"]):
                for y in range(at["y"], at["y"] + at["h"]):
                    self.assertIsNone(taken.get((x, y)), panel["title"])
                    taken[x, y] = panel["title"]
