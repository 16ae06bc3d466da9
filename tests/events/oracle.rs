//! The oracle: random steps of several agents, and the same on a plain directory.
//!
//! `STRONGROOM_SEEDS=N` runs so many sequences, `STRONGROOM_SEED=S` one of them again.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use strongroom::redact::Level;

use crate::common::{Home, may_mount};
use crate::hand::{Random, Stage, home};

/// Steps of one sequence.
const STEPS: usize = 60;

/// The seeds to run: by default so many.
pub(crate) fn seeds(count: u64) -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|n| n.parse::<u64>().ok());
    match (number("STRONGROOM_SEED"), number("STRONGROOM_SEEDS")) {
        (Some(seed), _) => seed..seed + 1,
        (None, count_there) => 0..count_there.unwrap_or(count),
    }
}

/// Plays one sequence; a failing one says how to play it again.
pub(crate) fn play(home: &Home, seed: u64, between: &mut dyn FnMut()) -> (usize, usize) {
    let id = format!("s{seed}");
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let mut random = Random::new(seed);
        let mut stage = Stage::set(home, &id, 1 + random.below(3), Level::All);
        for _ in 0..STEPS {
            between();
            stage.turn(&mut random);
        }
        stage.strike(home, &id)
    }));
    outcome.unwrap_or_else(|panic| {
        eprintln!("again with STRONGROOM_SEED={seed}");
        resume_unwind(panic)
    })
}

#[test]
fn what_is_stored_is_what_redaction_makes_of_a_plain_directory() {
    if !may_mount() {
        return;
    }
    let home = home();
    let mut compared = (0, 0);
    for seed in seeds(30) {
        let of = play(&home, seed, &mut || {});
        compared = (compared.0 + of.0, compared.1 + of.1);
    }
    println!("{} completions compared, {} of them byte by byte", compared.0, compared.1);
    assert_eq!(home.json(&["audit", "verify"])["ok"], true);
}
