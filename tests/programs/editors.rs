//! Editors: temporary file and rename, backup files, writing over the old one.

use crate::support::mounted::Place;
use crate::support::run::{installed, shell};

#[test]
fn a_file_is_saved_in_every_way_that_editors_know() {
    let place = Place::new(&["a"]);
    let mounted = place.mount();
    shell(
        &place.mnt(),
        "umask 022; echo one > doc; chmod 640 doc; ln doc hard
         # A new file renamed over the old one.
         echo two > .doc.tmp; sync -d .doc.tmp; mv .doc.tmp doc; test \"$(cat doc hard)\" = \"$(printf 'two\\none')\"
         # The old one as a backup, then written anew under its name.
         mv doc doc~; echo three > doc; test \"$(cat doc doc~)\" = \"$(printf 'three\\ntwo')\"
         # Over the old one, with links kept.
         echo four > hard; test \"$(cat hard)\" = four
         # While somebody reads the old one.
         exec 3< doc; echo five > new; mv new doc; test \"$(cat <&3)\" = three; exec 3<&-
         sed -i s/five/six/ doc; test \"$(cat doc)\" = six",
    );
    mounted.umount();
}

#[test]
fn vim_saves() {
    if !installed(&["vim"]) {
        return;
    }
    let place = Place::new(&["a"]);
    let mounted = place.mount();
    shell(
        &place.mnt(),
        "export HOME=$PWD; printf 'one\\ntwo\\n' > doc; ln -s doc link
         for options in 'backupcopy=yes' 'backupcopy=no' 'backup' 'nowritebackup'; do
           vim -es -u NONE -c \"set $options\" -c '1s/^/x/' -c wq doc
           vim -es -u NONE -c \"set $options\" -c 'normal Gox' -c wq link
         done
         test \"$(head -1 doc)\" = xxxxone; test $(grep -c '^x$' doc) = 4; test -L link; test ! -e .doc.swp",
    );
    mounted.umount();
}
