"""Whether the daemon accepts the webhooks that the official SDK accepts, and no others.

Usage: webhooks.py URL SECRET SEED CASES
"""

import hashlib
import hmac
import json
import random
import sys
import time
import urllib.error
import urllib.request

from elevenlabs.client import ElevenLabs

url, secret, seed, cases = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
random.seed(seed)
webhooks = ElevenLabs(api_key="none").webhooks


def digest(key, timestamp, body):
    return hmac.new(key.encode(), f"{timestamp}.{body}".encode(), hashlib.sha256).hexdigest()


def case():
    now = int(time.time())
    # Not just at the limit: the two look at the clock one after the other.
    timestamp = random.choice([
        *[str(now)] * 20, str(now - 1700), str(now - 1810), str(now + 4000), f"+{now}", f"0{now}", "0",
        "-5", "", "now", f"{now}.5", "1e9", f"{now // 1000}_{now % 1000:03}", f"_{now}", f"{now}__0", "9" * 30,
    ])
    body = random.choice([
        json.dumps({"type": "voice_removal_notice", "data": {"voice_id": "nobody"}}),
        json.dumps({"voice_id": "nobody", "status": "completed"}), "{}", "[]", "null", '"text"', "5",
        json.dumps({"data": []}), json.dumps({"data": {"voice_id": 5}}), "\u00e4\u4f60", "{", "", " {} ",
        json.dumps({"text": "\u4f60\u597d"}, ensure_ascii=False),
    ])
    key = random.choice([*[secret] * 20, secret + " ", secret.upper(), ""])
    code = digest(key, timestamp, random.choice([*[body] * 20, body + " "]))
    code = random.choice([*[code] * 20, code.upper(), code[:-1], code + "0", "", "g" * 64])
    parts = random.choice([
        *[[f"t={timestamp}", f"v0={code}"]] * 15,
        [f"v0={code}", f"t={timestamp}"], [f"t={timestamp}"], [f"v0={code}"], [f"t={timestamp}", f"v1={code}"],
        [f"t={timestamp}", f"v0={code}", "v0=00"], ["t=5", f"t={timestamp}", "v0=00", f"v0={code}"],
        [f"t={timestamp}", f" v0={code}"], [f"T={timestamp}", f"v0={code}"], [f"t={timestamp}", "x", f"v0={code}"],
    ])
    return ",".join(parts), body


def sdk_accepts(header, body):
    try:
        webhooks.construct_event(body, header, secret)
        return True
    except Exception:
        return False


def daemon_answers(header, body):
    headers = {"ElevenLabs-Signature": header, "Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/webhooks/elevenlabs", body.encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code


accepted = 0
for _ in range(cases):
    header, body = case()
    expected, status = sdk_accepts(header, body), daemon_answers(header, body)
    assert status in (200, 400, 401), status
    assert (status == 200) == expected, (seed, header, body, expected, status)
    accepted += expected
print(f"{accepted} of {cases} accepted")
assert cases // 10 < accepted < cases
