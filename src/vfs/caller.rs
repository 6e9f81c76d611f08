//! Who asks for an operation.
//!
//! Owns: the identity that comes with a request, membership in groups.
//! Does not own: permissions: the kernel has checked them.

/// The process that asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    pub uid: u32,
    pub gid: u32,
    /// 0 if the process is in a PID namespace that we cannot see.
    pub pid: u32,
}

impl Caller {
    /// True if the caller keeps set-id bits where others lose them (`CAP_FSETID`; requests do not tell capabilities).
    pub fn is_privileged(&self) -> bool {
        self.uid == 0
    }

    /// True if the caller belongs to group `gid`. Requests carry no supplementary groups; `/proc` knows them.
    pub fn is_in_group(&self, gid: u32) -> bool {
        if self.gid == gid {
            return true;
        }
        std::fs::read_to_string(format!("/proc/{}/status", self.pid)).is_ok_and(|status| groups_contain(&status, gid))
    }
}

fn groups_contain(status: &str, gid: u32) -> bool {
    status
        .lines()
        .find_map(|line| line.strip_prefix("Groups:"))
        .is_some_and(|groups| groups.split_ascii_whitespace().any(|group| group.parse() == Ok(gid)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn supplementary_groups_are_read_from_the_status_of_the_process() {
        let status = "Name:\tx\nGid:\t5\t5\t5\t5\nGroups:\t4 24 1000 \nNStgid:\t9\n";
        assert!(groups_contain(status, 24) && groups_contain(status, 1000));
        assert!(!groups_contain(status, 2) && !groups_contain("", 0));
    }
}
