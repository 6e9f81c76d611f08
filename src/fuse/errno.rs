//! Errno of the system calls crate → errno of the FUSE crate.

use rustix::io::Errno;

/// The same errno.
pub(super) fn reply(errno: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(errno.raw_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_errno_keeps_its_number() {
        for errno in [Errno::NOENT, Errno::NODATA, Errno::OPNOTSUPP, Errno::TIMEDOUT] {
            assert_eq!(i32::from(reply(errno)), errno.raw_os_error());
        }
    }
}
