//! Listing a large directory while entries come and go: what was there all the time is listed exactly once.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::support::mounted::Place;

/// As many as the issue of this test says; `TANDEMFS_LISTING` for more or fewer.
fn entries() -> usize {
    std::env::var("TANDEMFS_LISTING").map_or(20_000, |count| count.parse().unwrap())
}

fn list(directory: &Path) -> HashMap<String, usize> {
    let mut seen = HashMap::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        *seen.entry(entry.unwrap().file_name().into_string().unwrap()).or_insert(0) += 1;
    }
    seen
}

#[test]
fn what_is_there_all_the_time_is_listed_exactly_once() {
    let place = Place::new(&["a"]);
    let mounted = place.mount();
    let directory = place.mnt().join("many");
    std::fs::create_dir(&directory).unwrap();
    let stays = entries();
    std::thread::scope(|scope| {
        for part in 0..4 {
            let directory = &directory;
            scope.spawn(move || {
                for index in (part..stays).step_by(4) {
                    // Links cost less than files, and are names all the same.
                    std::os::unix::fs::symlink("x", directory.join(format!("stays{index}"))).unwrap();
                }
            });
        }
    });
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Names that sort before, among and after the others, made, renamed and removed.
            for number in 0usize.. {
                if done.load(Ordering::Relaxed) {
                    return number;
                }
                let prefix = ["a", "stays", "z"][number % 3];
                let (name, renamed) =
                    (directory.join(format!("{prefix}-{number}")), directory.join(format!("r{number}")));
                File::create(&name).unwrap();
                std::fs::rename(&name, &renamed).unwrap();
                if number >= 50 {
                    std::fs::remove_file(directory.join(format!("r{}", number - 50))).unwrap();
                }
            }
            0
        });
        for round in 0..3 {
            let seen = list(&directory);
            let missing = (0..stays).filter(|index| seen.get(&format!("stays{index}")) != Some(&1)).count();
            let twice: Vec<_> = seen.iter().filter(|(_, count)| **count > 1).take(5).collect();
            done.store(round == 2 || missing > 0 || !twice.is_empty(), Ordering::Relaxed);
            assert!(missing == 0 && twice.is_empty(), "round {round}: {missing} not listed once, twice: {twice:?}");
        }
        done.store(true, Ordering::Relaxed);
    });
    let seen = list(&directory);
    assert_eq!(seen.keys().filter(|name| name.starts_with("stays") && !name.starts_with("stays-")).count(), stays);
    mounted.umount();
}
