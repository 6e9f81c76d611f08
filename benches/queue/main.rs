//! The throughput of the replication queue itself: placements of 1 KiB chunks per minute on two targets that take a put at
//! once, everything else as in a mount: SQLite, chunk files, checks of their bytes, confirmations.
//!
//! `cargo bench --bench queue [-- OPTIONS]` prints a report; it asserts only that every chunk arrived at every target.
//!
//! ```text
//! --quick         100,000 chunks
//! --chunks N      chunks that wait when the clock starts (1,000,000)
//! --rounds N      how often (1)
//! --dir DIR       where to work (the target folder)
//! ```
//!
//! *The oldest waited* is the time until the last chunk of the stock came; *overtaken by* is how many chunks that came later
//! went before one, the most of all: 0 would be strictly first in, first out, and requests in flight at once make it a few.

mod counting;
#[allow(dead_code, reason = "the main job needs the rest of it")]
#[path = "../main_job/figures.rs"]
mod figures;
mod stock;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use counting::CountingTarget;
use figures::Rss;
use tandemfs::id::TargetBit;
use tandemfs::replication::driver::{Driver, DriverTarget, Options};
use tandemfs::replication::gate::{Gate, gate};
use tandemfs::target::DynTarget;

const TARGETS: u8 = 2;

struct Arguments {
    chunks: u64,
    rounds: u32,
    dir: PathBuf,
}

fn main() {
    let arguments = arguments(std::env::args().skip(1)).unwrap_or_else(|error| {
        eprintln!("error: {error}\nhint: the options are described at the top of benches/queue/main.rs");
        std::process::exit(2);
    });
    println!("# {} chunks of {} bytes waiting for {TARGETS} targets", arguments.chunks, stock::LENGTH);
    for round in 0..arguments.rounds {
        let dir = arguments.dir.join(format!("queue-{}-{round}", std::process::id()));
        let _scratch = Scratch(dir.clone());
        run(&dir, arguments.chunks);
    }
}

fn arguments(mut given: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let mut arguments = Arguments { chunks: 1_000_000, rounds: 1, dir };
    while let Some(option) = given.next() {
        let mut value = || given.next().ok_or_else(|| format!("{option} needs a value"));
        let number = |text: String| text.parse().map_err(|_| format!("{text:?} is no number"));
        match option.as_str() {
            "--quick" => arguments.chunks = 100_000,
            "--chunks" => arguments.chunks = number(value()?)?,
            "--rounds" => arguments.rounds = number(value()?)? as u32,
            "--dir" => arguments.dir = value()?.into(),
            // Cargo's own.
            "--bench" => {}
            other => return Err(format!("unknown option {other}")),
        }
    }
    Ok(arguments)
}

fn run(dir: &Path, chunks: u64) {
    let began = Instant::now();
    let stock = stock::make(dir, TARGETS, chunks);
    println!("made in {:.1} s", began.elapsed().as_secs_f64());
    let rss = Rss::watch(std::process::id());
    // As many workers as the machine of the aim has cores.
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let targets: Vec<Arc<CountingTarget>> = (0..TARGETS).map(|_| Arc::default()).collect();
    let (took, cpu) = runtime.block_on(async {
        let (cpu, began) = (processor_time(), Instant::now());
        let mut keepers = Vec::new();
        let driven = (0..TARGETS).zip(&targets).map(|(index, target)| {
            let (keeper, watch) = gate(Gate::Open);
            keepers.push(keeper);
            let bit = TargetBit::new(index).expect("a small number");
            let target: DynTarget = target.clone();
            DriverTarget { bit, name: format!("t{index}"), target, gate: watch, requests_max: None }
        });
        let driver = Driver::start(stock.meta.clone(), stock.files.clone(), driven.collect(), Options::default())
            .expect("a driver");
        let pending =
            || stock.meta.tallies().expect("tallies").iter().map(|(_, tally)| tally.pending_chunks).sum::<u64>();
        // It is asked rarely: it must cost nothing.
        while pending() > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let took = (began.elapsed(), processor_time() - cpu);
        driver.stop().await;
        took
    });
    let placed = chunks * u64::from(TARGETS);
    println!(
        "{placed} placements in {:.2} s: {:.0} per minute, {:.1} µs of processor time each",
        took.as_secs_f64(),
        placed as f64 / took.as_secs_f64() * 60.0,
        cpu.as_secs_f64() * 1e6 / placed as f64
    );
    println!("RssAnon at peak {} MiB, with the bits that the targets keep", rss.peak() >> 20);
    for (index, target) in targets.iter().enumerate() {
        let seen = target.seen();
        println!("t{index}: the oldest waited {:.2} s, the most overtaken by {}", seen.last_s, seen.overtaken);
        assert!(seen.puts >= chunks && seen.distinct == chunks, "t{index} has {} of {chunks} chunks", seen.distinct);
    }
}

/// Of all threads of this process.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// A folder that is removed at the end.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
