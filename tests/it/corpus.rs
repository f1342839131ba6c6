//! The corpora of the fuzz targets (`fuzz/`), as ordinary tests.

use std::fs;
use std::path::Path;

#[path = "../../fuzz/src/lib.rs"]
#[expect(unreachable_pub, reason = "it is a crate elsewhere")]
mod targets;

fn run_over(target: &str, run: fn(&[u8])) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(target);
    let mut inputs = 0;
    for entry in fs::read_dir(&directory).expect("a corpus") {
        let path = entry.expect("an entry").path();
        let input = fs::read(&path).expect("an input");
        println!("{}", path.display());
        run(&input);
        // What a client or a server was about to send when it broke off.
        for length in 0..input.len().min(300) {
            run(&input[..length]);
        }
        inputs += 1;
    }
    assert!(inputs > 0, "{} is empty", directory.display());
}

macro_rules! corpora {
    ($($target:ident),+ $(,)?) => {
        $(
            #[test]
            fn $target() {
                run_over(stringify!($target), targets::$target);
            }
        )+
    };
}

corpora!(
    list_answer,
    single_answer,
    error_body,
    retry_after,
    database_url,
    redis_url,
    queue_job,
    listen,
);
