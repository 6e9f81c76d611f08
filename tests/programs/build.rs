//! Building on the mount: many small files, compilers that map what they just wrote, programs that run from it.

use crate::support::mounted::Place;
use crate::support::run::{installed, shell};

#[test]
fn cargo_builds_and_runs_a_project() {
    if !installed(&["cargo"]) {
        return;
    }
    let place = Place::new(&["a"]);
    let mounted = place.mount();
    shell(
        &place.mnt(),
        "export CARGO_TARGET_DIR=$PWD/target; unset RUSTFLAGS; cargo new -q --offline --vcs none --lib part
         cargo new -q --offline --vcs none whole; cd whole; echo 'part = { path = \"../part\" }' >> Cargo.toml
         echo 'fn main() { println!(\"{}\", part::add(40, 2)); }' > src/main.rs
         test \"$(cargo run -q --offline)\" = 42; sed -i s/40/50/ src/main.rs; test \"$(cargo run -q --offline)\" = 52
         cargo test -q --offline > /dev/null; cargo clean -q --offline; test ! -e \"$CARGO_TARGET_DIR/debug\"",
    );
    mounted.umount();
}

#[test]
fn programs_run_and_libraries_are_loaded_from_the_mount() {
    if !installed(&["cc", "ar"]) {
        return;
    }
    let place = Place::new(&["a"]);
    let mounted = place.mount();
    shell(
        &place.mnt(),
        "echo 'int answer(void) { return 42; }' > lib.c
         printf '#include <dlfcn.h>\\nint main(int n, char **a) { void *l = dlopen(a[1], RTLD_NOW); if (!l) return 1;\\nint (*f)(void) = (int (*)(void)) dlsym(l, \"answer\"); return f() == 42 ? 0 : 2; }' > main.c
         cc -shared -fPIC -o lib.so lib.c; cc -o main main.c -ldl; ./main ./lib.so
         cc -c -o lib.o lib.c; ar rcs liblib.a lib.o; ar t liblib.a
         # A program that runs cannot be written to, but replaced.
         # It runs for sure once it has said so.
         cp \"$(command -v bash)\" running; mkfifo said end; ./running -c 'echo up > said; read line < end' & pid=$!
         test \"$(timeout 300 cat said)\" = up; ! ( echo x >> running ) 2> refused; grep -q 'Text file busy' refused
         cp main new; mv new running; echo > end; wait $pid; ./running ./lib.so
         printf '#!/bin/sh\\necho script $1\\n' > script; chmod +x script; test \"$(./script x)\" = 'script x'",
    );
    mounted.umount();
    let mounted = place.mount_with("state", &["-o".as_ref(), "noexec".as_ref()]);
    shell(&place.mnt(), "! ./main ./lib.so 2> /dev/null");
    mounted.umount();
}
