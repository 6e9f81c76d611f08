//! `tandemfs whereis`.

use std::path::PathBuf;

use clap::Args;

use super::{Outcome, output, reach};
use crate::control::Op;
use crate::control::protocol::{self, CopyState};

/// Tell where the bytes of files are
///
/// For each file and target: safe (a restore from that target alone brings it as it is now), pending, or absent.
#[derive(Debug, Args)]
pub struct Whereis {
    /// Files
    #[arg(required = true)]
    paths: Vec<PathBuf>,
}

impl Whereis {
    /// Runs the command.
    pub fn run(self) -> Outcome {
        for (entry, paths) in reach::holders(&self.paths)? {
            let files = reach::connect(&entry)?.call(Op::Whereis { paths }, |_| ())?;
            output::print(&text(&entry.mountpoint.to_path(), files))?;
        }
        Ok(())
    }
}

fn text(mountpoint: &std::path::Path, files: Vec<protocol::Whereis>) -> String {
    let mut text = String::new();
    for file in files {
        text += &format!("{} ({})\n", mountpoint.join(file.path.to_path()).display(), output::bytes(file.size));
        for target in file.targets {
            let state = match target.state {
                CopyState::Safe => "safe".into(),
                CopyState::Pending => format!("pending, {} to go", output::bytes(target.pending_bytes)),
                CopyState::Absent => "absent".into(),
            };
            text += &format!("  {:<12} {state}\n", target.name);
        }
        let local = match file.local_bytes {
            0 if file.size > 0 => "no bytes here".into(),
            bytes if bytes >= file.size => "here".into(),
            bytes => format!("{} here", output::bytes(bytes)),
        };
        text += &format!("  {:<12} {local}\n", "(local)");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Path;
    use crate::control::protocol::WhereisTarget;

    #[test]
    fn every_target_has_a_line() {
        let target = |name: &str, state, pending_bytes| WhereisTarget { name: name.into(), state, pending_bytes };
        let file = protocol::Whereis {
            path: Path(b"a/b".to_vec()),
            inode: 5,
            size: 4096,
            local_bytes: 4096,
            targets: vec![
                target("aws", CopyState::Safe, 0),
                target("oss", CopyState::Pending, 4096),
                target("disk", CopyState::Absent, 4096),
            ],
        };
        insta::assert_snapshot!(text(std::path::Path::new("/mnt"), vec![file]), @r"
        /mnt/a/b (4.0 KiB)
          aws          safe
          oss          pending, 4.0 KiB to go
          disk         absent
          (local)      here
        ");
    }
}
