//! Files and trees that are worked on, the same in every run, and the programs that work on them.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// Files of 4-64 KiB in `directories` directories.
pub fn small_files(dir: &Path, count: u64, directories: u64) {
    for index in 0..count {
        let folder = dir.join(format!("d{:03}", index % directories));
        std::fs::create_dir_all(&folder).unwrap();
        let length = 4096 + (index * 7919) % (60 << 10);
        std::fs::write(folder.join(format!("f{index:05}")), noise(index + 1, length as usize)).unwrap();
    }
}

/// One file of incompressible bytes.
pub fn noise_file(to: &Path, bytes: u64) {
    let mut file = File::create(to).unwrap();
    for block in 0..bytes >> 20 {
        file.write_all(&noise(block + 1_000_000, 1 << 20)).unwrap();
    }
}

/// A tree like that of a program's source: mostly small files of text, a few large ones, three levels of directories.
pub fn source_tree(dir: &Path, count: u64) {
    for index in 0..count {
        let folder = dir.join(format!("crate{:02}/src/module{:02}", index % 20, index / 20 % 20));
        std::fs::create_dir_all(&folder).unwrap();
        let lines = match index % 50 {
            0 => 4000,
            rest => 20 + rest * 7,
        };
        let mut text = String::new();
        for line in 0..lines {
            let word = (index + 1).wrapping_mul(line + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
            text.push_str(&format!("    let value_{line} = function_{word:06x}({index}, {line});\n"));
        }
        std::fs::write(folder.join(format!("file_{index:05}.rs")), text).unwrap();
    }
}

/// Overwrites 4 KiB at pseudo-random places: the same ones for the same count.
pub fn overwrite(path: &Path, edits: u64) -> File {
    let file = File::options().write(true).open(path).unwrap();
    let blocks = file.metadata().unwrap().len() / 4096;
    let block = noise(77, 4096);
    for edit in 0..edits {
        let place = (edit + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) % blocks;
        file.write_all_at(&block, place * 4096).unwrap();
    }
    file
}

/// Runs a program that must succeed, in `dir` if it is given; what it says is not shown.
pub fn run(dir: Option<&Path>, program: &str, args: &[&dyn AsRef<std::ffi::OsStr>]) {
    let mut command = Command::new(program);
    command.args(args.iter().map(|arg| arg.as_ref())).stdin(Stdio::null()).stdout(Stdio::null());
    command.stderr(Stdio::piped());
    if let Some(dir) = dir {
        command.current_dir(dir);
    }
    let output = command.output().unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(output.status.success(), "{command:?}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
}

/// Incompressible bytes, the same for the same seed.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x2545_f491_4f6c_dd1d) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// A Rust program of many modules without dependencies, to be built.
pub fn rust_program(dir: &Path) {
    let src = dir.join("src");
    std::fs::create_dir_all(&src).unwrap();
    let manifest = "[package]\nname = \"program\"\nversion = \"0.1.0\"\nedition = \"2021\"\n\n[workspace]\n";
    std::fs::write(dir.join("Cargo.toml"), manifest).unwrap();
    let mut main = String::new();
    let mut calls = String::new();
    for module in 0..100 {
        let mut text = String::new();
        for function in 0..20 {
            text.push_str(&format!(
                "pub fn f{function}(x: u64) -> String {{\n    let v: Vec<u64> = (0..x).map(|i| i * {module} + \
                 {function}).collect();\n    format!(\"{{v:?}}\")\n}}\n"
            ));
        }
        std::fs::write(src.join(format!("m{module}.rs")), text).unwrap();
        main.push_str(&format!("mod m{module};\n"));
        calls.push_str(&format!("    println!(\"{{}}\", m{module}::f{}(3));\n", module % 20));
    }
    std::fs::write(src.join("main.rs"), format!("#![allow(dead_code)]\n{main}\nfn main() {{\n{calls}}}\n")).unwrap();
}
