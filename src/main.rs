//! The program `tandemfs`.

fn main() -> std::process::ExitCode {
    tandemfs::cli::main()
}
