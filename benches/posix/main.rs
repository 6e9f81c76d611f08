//! What POSIX work costs on TandemFS, beside the plain directory of the same disk and beside a null FUSE filesystem
//! (`null_fuse`: the price of FUSE itself), in the same run.
//!
//! `cargo bench --bench posix [-- OPTIONS]` prints a table; it asserts nothing about times. The systems take turns at each
//! kind of work, in another order in each round, and everything written before is on disk before a time is taken; so
//! ratios say something even on a busy machine. A ratio is that of the two times of one round; the table shows the
//! median of the rounds and the lowest and highest. A second table has processor time in place of time.
//!
//! ```text
//! --quick            small sizes, three rounds: under a minute
//! --rounds N         how often everything is done (5)
//! --large-mib N      size of the large file (1024)
//! --files N          small files of 4-64 KiB, in N/25 directories (5000)
//! --sources N        files of the source tree (4000)
//! --build            also build a generated Rust program with cargo
//! --only WORD        only work whose name contains WORD; may be repeated
//! --systems A,B      of ext4, null, tandem (all)
//! --compare PROGRAM  one more TandemFS, of this binary, as system `other`
//! --dir DIR          where to work (the target folder)
//! ```
//!
//! `--null-fuse SOURCE MOUNTPOINT` serves the null FUSE filesystem alone, until it is unmounted.

mod cost;
#[path = "../null_fuse/mod.rs"]
mod null_fuse;
mod options;
mod report;
#[path = "../support/mod.rs"]
mod support;
mod systems;
mod works;

use options::{Command, Options};
use report::Report;
use systems::Systems;
use works::{Sources, Work};

fn main() {
    match Options::parse(std::env::args().skip(1)) {
        Ok(Command::Measure(options)) => measure(&options),
        Ok(Command::ServeNull { source, mountpoint }) => {
            let mounted = || println!("mounted");
            if let Err(error) = null_fuse::serve(&source, &mountpoint, mounted) {
                eprintln!("error: null FUSE filesystem at {}: {error}", mountpoint.display());
                std::process::exit(1);
            }
        }
        Err(error) => {
            eprintln!("error: {error}\nhint: the options are described at the top of benches/posix/main.rs");
            std::process::exit(2);
        }
    }
}

fn measure(options: &Options) {
    let mut systems = Systems::new(options);
    let sources = Sources::make(&systems.dir().join("source"), options);
    let mut report = Report::new(&systems.names());
    for round in 0..options.rounds {
        systems.begin_round(round);
        for work in Work::all(options) {
            for index in systems.turn(round) {
                let system = systems.prepare(index, work.needs());
                let cost = work.run(&sources, system);
                if options.reports(work.name()) {
                    report.add(work, system.name(), round, cost);
                }
            }
        }
        systems.end_round();
        eprintln!("round {} of {} done", round + 1, options.rounds);
    }
    println!("# {}", options.describe());
    report.print();
}
