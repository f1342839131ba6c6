#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| voice_sync_fuzz::queue_job(data));
