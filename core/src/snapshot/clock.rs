//! The race between a baseline and the clock that stamps files.

use std::{thread, time::Duration};

use rustix::time::{ClockId, clock_gettime};

use crate::tree::Timestamp;

/// Longer than any kernel's tick (10 ms), and than the second of a file system without fractions.
const WAIT_MAX: Duration = Duration::from_millis(1100);
const PAUSE: Duration = Duration::from_millis(1);

/// Waits until whatever is changed from now on gets a ctime after `newest`, the newest one there is (of the baseline, and of
/// what was renamed since), and gives the time at which a step may begin.
///
/// Kernels before 6.13 and many file systems stamp files by a clock that stands still for up to 10 ms: a file that is
/// changed right after its baseline was taken would look the same. Mostly that time is over already; it is at most a tick. A
/// time in the future (the clock was set back) is not waited for: such files are compared by content.
pub fn wait_for_clock(newest: Timestamp) -> Timestamp {
    let mut waited = Duration::ZERO;
    loop {
        let now = coarse_now();
        let far = newest.seconds.saturating_sub(now.seconds) > 1;
        if now > newest || far || waited >= WAIT_MAX {
            return now;
        }
        thread::sleep(PAUSE);
        waited += PAUSE;
    }
}

/// What the kernel stamps files by at the least.
fn coarse_now() -> Timestamp {
    let now = clock_gettime(ClockId::RealtimeCoarse);
    Timestamp { seconds: now.tv_sec, nanoseconds: now.tv_nsec as u32 }
}
