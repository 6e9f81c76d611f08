//! The command line.

use std::path::PathBuf;

/// What to do.
pub enum Command {
    Measure(Options),
    ServeNull { source: PathBuf, mountpoint: PathBuf },
}

/// How much to measure.
#[derive(Debug, Clone)]
pub struct Options {
    pub rounds: usize,
    pub large_mib: u64,
    pub files: u64,
    pub sources: u64,
    pub build: bool,
    pub only: Vec<String>,
    pub systems: Vec<String>,
    pub compare: Option<PathBuf>,
    pub dir: Option<PathBuf>,
}

impl Options {
    /// Reads the arguments; what `cargo bench` adds by itself is left out.
    pub fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Command, String> {
        let mut options = Options {
            rounds: 5,
            large_mib: 1024,
            files: 5000,
            sources: 4000,
            build: false,
            only: Vec::new(),
            systems: ["ext4", "null", "tandem"].map(String::from).to_vec(),
            compare: None,
            dir: None,
        };
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
            let number = |text: String| text.parse::<u64>().map_err(|e| format!("{text}: {e}"));
            match argument.as_str() {
                "--bench" => {}
                "--quick" => {
                    (options.rounds, options.large_mib, options.files, options.sources) = (3, 64, 500, 400);
                }
                "--rounds" => options.rounds = number(value()?)?.max(1) as usize,
                "--large-mib" => options.large_mib = number(value()?)?.max(8),
                "--files" => options.files = number(value()?)?.max(1),
                "--sources" => options.sources = number(value()?)?.max(1),
                "--build" => options.build = true,
                "--only" => options.only.push(value()?),
                "--systems" => options.systems = value()?.split(',').map(String::from).collect(),
                "--compare" => options.compare = Some(value()?.into()),
                "--dir" => options.dir = Some(value()?.into()),
                "--null-fuse" => {
                    return Ok(Command::ServeNull { source: value()?.into(), mountpoint: value()?.into() });
                }
                other => return Err(format!("{other} is no option")),
            }
        }
        if let Some(unknown) = options.systems.iter().find(|name| !["ext4", "null", "tandem"].contains(&name.as_str()))
        {
            return Err(format!("{unknown} is no system"));
        }
        Ok(Command::Measure(options))
    }

    /// True if this work is asked for.
    pub fn reports(&self, work: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|word| work.contains(word.as_str()))
    }

    /// Directories of the small files.
    pub fn directories(&self) -> u64 {
        (self.files / 25).max(1)
    }

    /// The sizes, in words.
    pub fn describe(&self) -> String {
        format!(
            "{} rounds; a file of {} MiB; {} files of 4-64 KiB in {} directories; a source tree of {} files",
            self.rounds,
            self.large_mib,
            self.files,
            self.directories(),
            self.sources
        )
    }
}
