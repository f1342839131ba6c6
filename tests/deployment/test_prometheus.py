"""The rules under examples/prometheus/ and the dashboard under examples/grafana/: that Prometheus accepts the rules,
that they say what they should when they should, and that every metric exists."""

import json
import re
import socket
import sqlite3
import subprocess
import tempfile
import time
import unittest
import urllib.request
from pathlib import Path

import yaml

from project import REFERENCE, ROOT, built

PROMETHEUS = ROOT / "examples" / "prometheus"
RULES = PROMETHEUS / "voice-sync.rules.yml"
TESTS = PROMETHEUS / "voice-sync.rules.test.yml"
DASHBOARD = ROOT / "examples" / "grafana" / "voice-sync.json"
ALERTS = ROOT / "docs" / "how-to" / "alerts.md"
NAME = re.compile(r"\bvoice_sync_\w+")


def promtool(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run(["promtool", *map(str, arguments)], text=True, capture_output=True)


def environment(directory: Path) -> dict[str, str]:
    """Of an application without voices, with its database in this directory."""
    database = directory / "app.db"
    ddl = """CREATE TABLE voices (id text PRIMARY KEY, user_id text, elevenlabs_voice_id text, status text,
                                  preview_url text, completed_at text, created_at text)"""
    with sqlite3.connect(database) as connection:
        connection.execute(ddl)
    return {"DATABASE_URL": f"sqlite:///{database}", "ELEVENLABS_API_KEY": "any"}


def written(directory: Path) -> Path:
    """The file that a pass writes."""
    metrics = directory / "voice_sync.prom"
    subprocess.run(
        [built("VOICE_SYNC_TEST_STATIC"), "sync-once", "--metrics-file", metrics],
        env=environment(directory),
        check=True,
        capture_output=True,
    )
    return metrics


def shown() -> set[str]:
    """The series that a pass writes, as --listen shows them, too."""
    with tempfile.TemporaryDirectory() as directory:
        lines = written(Path(directory)).read_text().splitlines()
    return {NAME.match(line)[0] for line in lines if line.startswith("voice_sync_")}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def got(url: str, accept: str = "*/*") -> tuple[str, str]:
    """Body and media type, once somebody answers."""
    for _ in range(600):
        try:
            with urllib.request.urlopen(urllib.request.Request(url, headers={"Accept": accept})) as response:
                return response.read().decode(), response.headers["Content-Type"]
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"{url} does not answer")


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
        self.assertEqual(rules, set(re.findall(r"^\| `(VoiceSync\w+)` \|", ALERTS.read_text(), re.M)))


class Files(unittest.TestCase):
    """The rules, on the files that real runs of `sync-once --metrics-file` write one after the other."""

    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = Path(directory.name)
        self.right = environment(self.directory)
        with sqlite3.connect(self.directory / "app.db") as connection:
            connection.execute("INSERT INTO voices VALUES ('1', '1', 'voice1', 'processing', NULL, NULL, '2026-01-01')")
        self.closed = f"http://127.0.0.1:{free_port()}"
        self.samples: list[dict[str, float]] = []

    def run_with(self, code: int, runs: int, *words, **changed):
        """Some runs, which a node_exporter would show for a minute each."""
        metrics = self.directory / "voice_sync.prom"
        for _ in range(runs):
            command = [built("VOICE_SYNC_TEST_STATIC"), "sync-once", "--metrics-file", metrics, *words]
            done = subprocess.run(command, env=self.right | changed, capture_output=True, text=True)
            self.assertEqual(done.returncode, code, done.stderr)
            lines = [line.rsplit(" ", 1) for line in metrics.read_text().splitlines() if not line.startswith("#")]
            self.samples.append({name: float(value) for name, value in lines})

    def alerts(self, minute: int) -> set[str]:
        """Those that fire then, if the first run was in minute 0."""
        # The rules compare with Prometheus' clock, which begins at zero in a test; the first success was then.
        success = "voice_sync_last_success_timestamp_seconds"
        zero = min((sample[success] for sample in self.samples if sample[success]), default=0)
        series = [
            {
                "series": name,
                "values": " ".join(str(sample[name] - zero if name == success and zero else sample[name]) for sample in self.samples),
            }
            for name in self.samples[0]
        ]
        rules = [rule["alert"] for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
        firing = set()
        for rule in rules:
            case = {"eval_time": f"{minute}m", "alertname": rule}
            test = {"interval": "1m", "input_series": series, "alert_rule_test": [case]}
            file = self.directory / "test.yml"
            file.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "tests": [test]}))
            if promtool("test", "rules", file).returncode != 0:
                firing.add(rule)
        return firing

    def with_provider(self) -> dict[str, str]:
        provider = subprocess.Popen(
            [built("VOICE_SYNC_TEST_SIMULATOR"), "--listen", "127.0.0.1:0"], text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self.addCleanup(provider.stdout.close)
        self.addCleanup(provider.wait)
        self.addCleanup(provider.kill)
        return {"ELEVENLABS_BASE_URL": provider.stdout.readline().strip()}

    def test_nothing_fires_while_passes_succeed(self):
        self.run_with(0, 20, **self.with_provider())
        self.assertEqual(self.alerts(15), set())

    def test_a_wrong_table_fires_and_stops_when_it_is_right_again(self):
        right = self.with_provider()
        self.run_with(0, 1, **right)
        self.run_with(78, 3, "--table", "nowhere", **right)
        self.run_with(0, 3, **right)
        self.assertEqual(self.alerts(3), {"VoiceSyncMisconfigured"})
        self.assertEqual(self.alerts(5), set())

    def test_a_database_that_is_away_fires(self):
        right = self.with_provider()
        self.run_with(0, 1, **right)
        self.run_with(69, 5, **right | {"DATABASE_URL": "postgresql://user@127.0.0.1:1/nothing"})
        self.assertEqual(self.alerts(5), {"VoiceSyncDatabaseFails"})

    def test_an_outage_of_the_provider_fires(self):
        self.run_with(0, 1, **self.with_provider())
        self.run_with(75, 30, ELEVENLABS_BASE_URL=self.closed)
        self.assertEqual(self.alerts(29), {"VoiceSyncProviderDown", "VoiceSyncStalled"})


class Scraped(unittest.TestCase):
    """By a Prometheus and a node_exporter of the distribution."""

    def start(self, *words, env=None):
        process = subprocess.Popen([*map(str, words)], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)

    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = Path(directory.name)
        self.exporter, self.daemon, self.prometheus = free_port(), free_port(), free_port()

    def test_promtool_finds_nothing_to_complain_about(self):
        text = written(self.directory).read_text()
        done = subprocess.run(["promtool", "check", "metrics"], input=text, text=True, capture_output=True)
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, "", ""))

    def test_both_formats_are_served(self):
        self.start(built("VOICE_SYNC_TEST_STATIC"), "daemon", "--listen", self.daemon, env=environment(self.directory))
        url = f"http://127.0.0.1:{self.daemon}/metrics"
        for accept, media_type, end in (
            ("text/plain", "text/plain; version=0.0.4", "\n"),
            ("*/*", "text/plain; version=0.0.4", "\n"),
            ("application/openmetrics-text; version=1.0.0", "application/openmetrics-text; version=1.0.0", "# EOF\n"),
        ):
            body, answered = got(url, accept)
            self.assertTrue(answered.startswith(media_type), answered)
            self.assertTrue(body.endswith(end), body[-200:])
            self.assertEqual(end == "# EOF\n", "# EOF" in body)
            self.assertIn("\nprocess_resident_memory_bytes ", body)

    def test_prometheus_and_node_exporter_read_them(self):
        written(self.directory)
        listen = f"127.0.0.1:{self.exporter}"
        self.start(
            "prometheus-node-exporter", "--collector.disable-defaults", "--collector.textfile",
            f"--collector.textfile.directory={self.directory}", f"--web.listen-address={listen}",
        )  # fmt: skip
        other = self.directory / "daemon"
        other.mkdir()
        self.start(built("VOICE_SYNC_TEST_STATIC"), "daemon", "--listen", self.daemon, env=environment(other))
        jobs = [("textfile", self.exporter), ("daemon", self.daemon)]
        jobs = [{"job_name": name, "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]} for name, port in jobs]
        configuration = self.directory / "prometheus.yml"
        configuration.write_text(yaml.safe_dump({"global": {"scrape_interval": "1s"}, "scrape_configs": jobs}))
        self.start(
            "prometheus", f"--config.file={configuration}", f"--storage.tsdb.path={self.directory / 'data'}",
            f"--web.listen-address=127.0.0.1:{self.prometheus}",
        )  # fmt: skip
        api = f"http://127.0.0.1:{self.prometheus}/api/v1"
        for _ in range(600):
            result = json.loads(got(f"{api}/query?query=voice_sync_passes_total")[0])["data"]["result"]
            if {series["metric"]["job"] for series in result} == {"textfile", "daemon"}:
                break
            time.sleep(0.1)
        else:
            self.fail(f"only {result} was scraped")
        targets = json.loads(got(f"{api}/targets/metadata?match_target={{}}")[0])["data"]
        types = {(entry["metric"], entry["type"]) for entry in targets}
        for expected in (
            ("voice_sync_passes_total", "counter"),
            ("voice_sync_pass_duration_seconds", "histogram"),
            ("voice_sync_processing_voices", "gauge"),
            ("voice_sync_build_info", "gauge"),
        ):
            self.assertIn(expected, types)
        errors = json.loads(got(f"{api}/query?query=node_textfile_scrape_error")[0])["data"]["result"]
        self.assertEqual([series["value"][1] for series in errors], ["0"])


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

    def test_the_reference_has_all_of_them_and_no_other(self):
        families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown()}
        documented = re.findall(r"^\| `(\w+)` \|", (REFERENCE / "metrics.md").read_text(), re.M)
        self.assertEqual({f"voice_sync_{name}" for name in documented}, families)


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
