"""Checks the simulator with the official ElevenLabs SDK: python sdk.py BASE_URL KEY

The simulator must accept KEY only. What the SDK can use and read, voice-sync's users can too.
"""

import io
import sys

from elevenlabs.client import ElevenLabs
from elevenlabs.core.api_error import ApiError
from elevenlabs.types import Voice

PREVIEW = "https://storage.example.com/previews/{}.mp3"


def check(truth, what):
    if not truth:
        sys.exit(f"failed: {what}")


def equal(found, expected, what):
    check(found == expected, f"{what}: {found!r} is not {expected!r}")


def refused(call, status, code):
    """Runs a call that must fail, and checks how."""
    try:
        call()
    except ApiError as error:
        equal(error.status_code, status, f"status of {code}")
        detail = error.body.detail if hasattr(error.body, "detail") else error.body["detail"]
        equal(detail.get("code") or detail["status"], code, "code")
        check(detail["message"], f"message of {code}")
    else:
        sys.exit(f"failed: nothing raised {code}")


def add(client, name):
    created = client.voices.ivc.create(
        name=name, files=[("sample.mp3", io.BytesIO(b"ID3" + bytes(4096)), "audio/mpeg")]
    )
    check(created.voice_id.isalnum(), "an id is alphanumeric")
    equal(len(created.voice_id), 20, "length of an id")
    equal(created.requires_verification, False, "requires_verification of a new clone")
    return created.voice_id


def typed(voice):
    """The fields of which an SDK that met something unexpected would have let through anything."""
    check(isinstance(voice, Voice), "a voice is a Voice")
    check(isinstance(voice.samples, list), "samples")
    check(voice.samples[0].size_bytes > 0, "size of the sample")
    equal(voice.settings.speed, 1.0, "speed")
    equal(voice.labels["gender"], "female", "label")
    equal(voice.verified_languages[0].locale, "en-US", "locale")
    check("eleven_turbo_v2" in voice.high_quality_base_model_ids, "base models")
    check(voice.created_at_unix > 1_600_000_000, "creation time")
    check(voice.is_owner, "owner")
    # The SDK takes what it does not know as it is; a strict look must find nothing wrong either.
    Voice.model_validate(voice.model_dump(), strict=True)


def instant(client):
    ready = client.voices.get(add(client, "Anna [ready]"))
    typed(ready)
    equal(ready.name, "Anna [ready]", "name")
    equal(ready.category, "cloned", "category")
    equal(ready.preview_url, PREVIEW.format(ready.voice_id), "preview")
    equal(ready.fine_tuning.state, {}, "state of an instant clone")
    equal(ready.voice_verification.requires_verification, False, "verification")
    equal(ready.safety_control, "NONE", "safety control")

    equal(client.voices.get("sim-ready1h-1").preview_url, None, "preview before its time")
    equal(client.voices.get("sim-banned-1").safety_control, "BAN", "safety control once banned")
    waiting = client.voices.get("sim-unverified-1").voice_verification
    equal((waiting.requires_verification, waiting.is_verified), (True, False), "verification")
    return ready.voice_id


def professional(client):
    def states(voice_id):
        voice = client.voices.get(voice_id)
        typed(voice)
        equal(voice.category, "professional", "category")
        check(len(voice.fine_tuning.state) == 2, "two models")
        check(set(voice.fine_tuning.state) == set(voice.fine_tuning.progress), "progress")
        return voice, set(voice.fine_tuning.state.values())

    voice, found = states(add(client, "Bert [pvcready]"))
    equal(found, {"fine_tuned"}, "states of a trained voice")
    equal(voice.preview_url, PREVIEW.format(voice.voice_id), "preview of a trained voice")
    equal(voice.voice_verification.is_verified, True, "verification of a trained voice")

    _, found = states("sim-pvcready1h-1")
    equal(found, {"not_started"}, "states at first")
    voice, found = states("sim-pvctraining-1")
    equal(found, {"fine_tuning"}, "states while training")
    check(0 < voice.fine_tuning.progress["eleven_turbo_v2_5"] < 1, "progress while training")
    voice, found = states("sim-pvcfailed-1")
    equal(found, {"failed"}, "states after a failure")
    check(voice.fine_tuning.message["eleven_multilingual_v2"], "message of a failure")
    voice, found = states("sim-pvcunverified-1")
    equal(found, {"not_started"}, "states before the verification")
    equal(voice.voice_verification.is_verified, False, "verification still to come")


def speech(client):
    silent = add(client, "Cleo [silent]")
    equal(client.voices.get(silent).preview_url, None, "preview before any speech")
    audio = client.text_to_speech.convert(
        silent, text="Hi", model_id="eleven_flash_v2_5", output_format="mp3_22050_32"
    )
    check(len(b"".join(audio)) > 0, "audio")
    equal(client.voices.get(silent).preview_url, PREVIEW.format(silent), "preview after speech")
    refused(
        lambda: list(client.text_to_speech.convert("nobody", text="Hi")), 400, "voice_not_found"
    )
    return silent


def lists(client):
    added = [add(client, f"Voice {number} [ready]") for number in range(25)]
    asked = added + ["sim-missing-1", "sim-unlisted-1", "nobody"]
    answer = client.voices.search(voice_ids=asked, page_size=100)
    found = {voice.voice_id for voice in answer.voices if voice.category != "premade"}
    equal(found, set(added), "voices by id")
    equal((answer.has_more, answer.next_page_token), (False, None), "one page")
    equal(answer.total_count, 25, "total of the asked")
    check(any(voice.category == "premade" for voice in answer.voices), "default voices on page 0")

    for chosen in ({"voice_ids": added}, {}):
        found, pages, token = [], 0, None
        while True:
            answer = client.voices.search(page_size=10, next_page_token=token, **chosen)
            found += [voice.voice_id for voice in answer.voices if voice.category != "premade"]
            pages += 1
            token = answer.next_page_token
            equal(answer.has_more, token is not None, "has_more")
            if token is None:
                break
        check(set(added) <= set(found), "pages hold every voice")
        equal(len(found), len(set(found)), "pages hold no voice twice")
        equal(pages, -(-answer.total_count // 10), "number of pages")
        equal(len(found), answer.total_count, "total")

    everything = {voice.voice_id for voice in client.voices.get_all().voices}
    check(set(added) <= everything, "get_all holds every voice")
    return added


def main(base_url, key):
    client = ElevenLabs(base_url=base_url, api_key=key)
    anna = instant(client)
    professional(client)
    client.voices.delete(speech(client))
    added = lists(client)

    refused(lambda: client.voices.get("nobody"), 400, "voice_not_found")
    refused(lambda: client.voices.get("sim-missing-1"), 400, "voice_not_found")
    wrong = ElevenLabs(base_url=base_url, api_key=key + "-wrong")
    refused(lambda: wrong.voices.get(anna), 401, "invalid_api_key")
    refused(lambda: wrong.voices.search(), 401, "invalid_api_key")

    for voice_id in [anna, *added]:
        equal(client.voices.delete(voice_id).status, "ok", "deletion")
    refused(lambda: client.voices.get(anna), 400, "voice_not_found")
    refused(lambda: client.voices.delete(anna), 400, "voice_not_found")
    left = client.voices.search(voice_ids=[anna, *added])
    check(all(voice.category == "premade" for voice in left.voices), "deleted voices are gone")
    print("sdk ok")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
