//! What a piece of work costs: time on the wall, and time on processors of the programs that do it and of the daemon that
//! serves them. The second says more on a busy machine.

use std::time::{Duration, Instant};

/// Wall and processor time.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    pub wall: Duration,
    pub processor: Duration,
}

/// Takes the cost of `work`, which this process and its children do, and the process `daemon` meanwhile.
pub fn of(daemon: Option<u32>, work: impl FnOnce()) -> Cost {
    let before = processor_time(daemon);
    let start = Instant::now();
    work();
    let wall = start.elapsed();
    Cost { wall, processor: processor_time(daemon).saturating_sub(before) }
}

/// Processor time so far of this process, of its children that have ended, and of `daemon`.
fn processor_time(daemon: Option<u32>) -> Duration {
    let own = [libc::RUSAGE_SELF, libc::RUSAGE_CHILDREN].map(|who| {
        // SAFETY: `usage` is plain numbers that the call fills in.
        let usage = unsafe {
            let mut usage: libc::rusage = std::mem::zeroed();
            libc::getrusage(who, &mut usage);
            usage
        };
        let time = |t: libc::timeval| Duration::new(t.tv_sec as u64, t.tv_usec as u32 * 1000);
        time(usage.ru_utime) + time(usage.ru_stime)
    });
    own[0] + own[1] + daemon.map_or(Duration::ZERO, processor_time_of)
}

fn processor_time_of(pid: u32) -> Duration {
    // SAFETY: both are plain numbers that the calls fill in; a process that has ended leaves them zero.
    let time = unsafe {
        let (mut clock, mut time) = (0, std::mem::zeroed::<libc::timespec>());
        if libc::clock_getcpuclockid(pid as i32, &mut clock) == 0 {
            libc::clock_gettime(clock, &mut time);
        }
        time
    };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
