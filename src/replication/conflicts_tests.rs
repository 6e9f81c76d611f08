//! The rule against a small tree that applies records one by one: every order that the rule allows gives the tree that
//! the order of seq gives, and each clause of it is needed.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::clock::Timestamp;
use crate::format::record::{Content, Extent};
use crate::id::{Generation, Hash};

#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Node {
    dir: bool,
    names: usize,
    mode: u32,
    mtime: Timestamp,
    ctime: Timestamp,
    times_seq: u64,
    /// One chunk reference per file: enough to see which record came last.
    chunk: Option<Hash>,
    generation: u64,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// The oracle: what replay does, in memory, refusing what a valid history never asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Tree {
    nodes: BTreeMap<u64, Node>,
    names: BTreeMap<(u64, Vec<u8>), u64>,
}

type Applied = Result<(), String>;

impl Tree {
    fn new() -> Tree {
        let root = Node { dir: true, names: 1, ..Node::default() };
        Tree { nodes: BTreeMap::from([(1, root)]), names: BTreeMap::new() }
    }

    fn node(&mut self, ino: InodeId) -> Result<&mut Node, String> {
        self.nodes.get_mut(&ino.0).ok_or_else(|| format!("no inode {ino}"))
    }

    fn name(&mut self, seq: u64, parent: InodeId, name: &[u8], ino: InodeId) -> Applied {
        self.touch(seq, parent)?;
        match self.names.insert((parent.0, name.to_vec()), ino.0) {
            None => Ok(()),
            Some(old) => Err(format!("{parent}/{name:?} already names {old}")),
        }
    }

    fn unname(&mut self, seq: u64, parent: InodeId, name: &[u8], ino: InodeId) -> Applied {
        self.touch(seq, parent)?;
        match self.names.remove(&(parent.0, name.to_vec())) {
            Some(old) if old == ino.0 => Ok(()),
            other => Err(format!("{parent}/{name:?} names {other:?}, not {ino}")),
        }
    }

    /// A name in `parent` changed: its times, unless a later record set them already.
    fn touch(&mut self, seq: u64, parent: InodeId) -> Applied {
        let node = self.node(parent)?;
        if !node.dir {
            return Err(format!("{parent} is no directory"));
        }
        if seq >= node.times_seq {
            (node.mtime, node.ctime, node.times_seq) = (time(seq), time(seq), seq);
        }
        Ok(())
    }

    fn set_ctime(&mut self, seq: u64, ino: InodeId) -> Applied {
        let node = self.node(ino)?;
        node.ctime = time(seq);
        if node.dir {
            node.times_seq = seq;
        }
        Ok(())
    }

    fn lose_name(&mut self, ino: InodeId) -> Applied {
        if self.names.keys().any(|(parent, _)| *parent == ino.0) {
            return Err(format!("directory {ino} is not empty"));
        }
        let node = self.node(ino)?;
        node.names -= 1;
        if node.names == 0 {
            self.nodes.remove(&ino.0);
        }
        Ok(())
    }

    fn apply(&mut self, seq: u64, change: &Change) -> Applied {
        match change {
            Change::Mkdir { parent, name, ino, mode, .. } | Change::Create { parent, name, ino, mode, .. } => {
                let dir = matches!(change, Change::Mkdir { .. });
                let node = Node { dir, names: 1, mode: *mode, mtime: time(seq), ctime: time(seq), ..Node::default() };
                self.nodes.insert(ino.0, node);
                self.name(seq, *parent, name, *ino)
            }
            Change::Symlink { .. } | Change::Void { .. } => Ok(()),
            Change::Link { parent, name, ino, .. } => {
                self.node(*ino)?.names += 1;
                self.set_ctime(seq, *ino)?;
                self.name(seq, *parent, name, *ino)
            }
            Change::Unlink { parent, name, ino, .. } | Change::Rmdir { parent, name, ino, .. } => {
                self.unname(seq, *parent, name, *ino)?;
                self.set_ctime(seq, *ino)?;
                self.lose_name(*ino)
            }
            Change::Rename { from, to, ino, replaced, .. } => {
                self.unname(seq, from.parent, &from.name, *ino)?;
                if let Some(replaced) = replaced {
                    self.unname(seq, to.parent, &to.name, *replaced)?;
                    self.set_ctime(seq, *replaced)?;
                    self.lose_name(*replaced)?;
                }
                self.set_ctime(seq, *ino)?;
                self.name(seq, to.parent, &to.name, *ino)?;
                self.is_tree(*ino)
            }
            Change::Exchange { a, b, .. } => {
                self.unname(seq, a.0.parent, &a.0.name, a.1)?;
                self.unname(seq, b.0.parent, &b.0.name, b.1)?;
                self.name(seq, a.0.parent, &a.0.name, b.1)?;
                self.name(seq, b.0.parent, &b.0.name, a.1)?;
                self.set_ctime(seq, a.1)?;
                self.set_ctime(seq, b.1)?;
                self.is_tree(a.1)?;
                self.is_tree(b.1)
            }
            Change::Setattr { ino, mode, mtime, .. } => {
                self.set_ctime(seq, *ino)?;
                let node = self.node(*ino)?;
                node.mode = mode.unwrap_or(node.mode);
                node.mtime = mtime.unwrap_or(node.mtime);
                Ok(())
            }
            Change::Setxattr { ino, name, value, .. } => {
                self.set_ctime(seq, *ino)?;
                self.node(*ino)?.xattrs.insert(name.clone(), value.clone());
                Ok(())
            }
            Change::Removexattr { ino, name, .. } => {
                self.set_ctime(seq, *ino)?;
                self.node(*ino)?.xattrs.remove(name);
                Ok(())
            }
            Change::Content(content) => {
                let node = self.node(content.ino)?;
                (node.mtime, node.ctime, node.generation) = (content.mtime, content.ctime, content.generation.0);
                node.chunk = content.chunks.first().map(|(hash, _)| *hash);
                Ok(())
            }
            Change::Repack { from, chunks, .. } => {
                for node in self.nodes.values_mut().filter(|node| node.chunk == Some(*from)) {
                    node.chunk = Some(chunks[0].0);
                }
                Ok(())
            }
        }
    }

    fn is_tree(&self, start: InodeId) -> Applied {
        let mut at = start.0;
        for _ in 0..=self.nodes.len() {
            if at == 1 {
                return Ok(());
            }
            match self.names.iter().find(|(_, ino)| **ino == at) {
                Some(((parent, _), _)) => at = *parent,
                None => return Err(format!("inode {at} hangs in no directory")),
            }
        }
        Err(format!("inode {start} is its own ancestor"))
    }
}

fn time(seq: u64) -> Timestamp {
    Timestamp::new(seq as i64, 0).unwrap()
}

fn chunk(number: u64) -> Hash {
    Hash::of(&number.to_le_bytes())
}

fn dentry(parent: u64, name: &str) -> Dentry {
    Dentry { parent: InodeId(parent), name: name.into() }
}

// Changes in short, for histories that can be read. Times are those of their seq, set by `history`.
fn mkdir(parent: u64, name: &str, ino: u64) -> Change {
    let (parent, name, ino) = (InodeId(parent), name.into(), InodeId(ino));
    Change::Mkdir { parent, name, ino, mode: 0o40755, uid: 0, gid: 0, time: Timestamp::EPOCH, xattrs: vec![] }
}
fn create(parent: u64, name: &str, ino: u64) -> Change {
    let (parent, name, ino) = (InodeId(parent), name.into(), InodeId(ino));
    let mode = 0o100644;
    Change::Create { parent, name, ino, mode, uid: 0, gid: 0, rdev: 0, time: Timestamp::EPOCH, xattrs: vec![] }
}
fn link(parent: u64, name: &str, ino: u64) -> Change {
    Change::Link { parent: InodeId(parent), name: name.into(), ino: InodeId(ino), time: Timestamp::EPOCH }
}
fn unlink(parent: u64, name: &str, ino: u64) -> Change {
    Change::Unlink { parent: InodeId(parent), name: name.into(), ino: InodeId(ino), time: Timestamp::EPOCH }
}
fn rmdir(parent: u64, name: &str, ino: u64) -> Change {
    Change::Rmdir { parent: InodeId(parent), name: name.into(), ino: InodeId(ino), time: Timestamp::EPOCH }
}
fn rename(from: Dentry, to: Dentry, ino: u64, replaced: Option<u64>, dir: bool) -> Change {
    Change::Rename { from, to, ino: InodeId(ino), replaced: replaced.map(InodeId), dir, time: Timestamp::EPOCH }
}
fn setattr(ino: u64, mode: Option<u32>, mtime: Option<Timestamp>) -> Change {
    let ino = InodeId(ino);
    Change::Setattr { ino, mode, uid: None, gid: None, atime: None, mtime, ctime: Timestamp::EPOCH }
}
fn content(ino: u64, generation: u64, hash: Hash) -> Change {
    Change::Content(Content {
        ino: InodeId(ino),
        generation: Generation(generation),
        whole: true,
        size: 1,
        mtime: time(generation),
        ctime: time(generation),
        mode: None,
        chunks: vec![(hash, 1)],
        extents: vec![Extent { offset: 0, length: 1, chunk: 0, chunk_offset: 0 }],
        zero: vec![],
        part: None,
    })
}
fn repack(from: Hash, to: Hash) -> Change {
    let moves = vec![Extent { offset: 0, length: 1, chunk: 0, chunk_offset: 0 }];
    Change::Repack { from, chunks: vec![(to, 1)], moves }
}

type History = Vec<(u64, Change, Footprint)>;

fn history(changes: Vec<Change>) -> History {
    changes
        .into_iter()
        .zip(1..)
        .map(|(change, seq)| {
            let footprint = Footprint::of(&change);
            (seq, change, footprint)
        })
        .collect()
}

fn in_order(history: &History) -> Tree {
    let mut tree = Tree::new();
    for (seq, change, _) in history {
        tree.apply(*seq, change).unwrap_or_else(|e| panic!("history is invalid at {seq}: {e}"));
    }
    tree
}

/// Ships what the rule lets go while `waits(round, seq)` says which records are not ready; the order of shipping.
fn rounds(history: &History, waits: impl Fn(usize, u64) -> bool, rounds: usize) -> Vec<u64> {
    let mut shipped = Vec::new();
    for round in 0..=rounds {
        let mut deferred = Deferred::new();
        for (seq, _, footprint) in history.iter().filter(|(seq, ..)| !shipped.contains(seq)).collect::<Vec<_>>() {
            if (round < rounds && waits(round, *seq)) || !deferred.admits(footprint) {
                deferred.insert(footprint);
            } else {
                shipped.push(*seq);
            }
        }
    }
    shipped
}

fn replay(history: &History, order: &[u64]) -> Result<Tree, String> {
    let mut tree = Tree::new();
    for seq in order {
        let (_, change, _) = &history[*seq as usize - 1];
        tree.apply(*seq, change).map_err(|e| format!("at {seq}: {e}"))?;
    }
    Ok(tree)
}

/// Reads numbers as operations on whatever exists, so that every history is valid and shrinks well.
fn build(steps: &[[u8; 5]]) -> History {
    const NAMES: [&str; 3] = ["a", "b", "c"];
    let mut tree = Tree::new();
    let mut changes: Vec<(Change, bool)> = Vec::new();
    let mut next_inode = 2;
    let mut chunks = vec![1, 2];
    let mut next_chunk = 3;
    for step in steps {
        let pick = |byte: u8, len: usize| byte as usize % len;
        let dirs: Vec<u64> = tree.nodes.iter().filter(|(_, node)| node.dir).map(|(ino, _)| *ino).collect();
        let nodes: Vec<u64> = tree.nodes.keys().copied().collect();
        let files: Vec<u64> = tree.nodes.iter().filter(|(_, node)| !node.dir).map(|(ino, _)| *ino).collect();
        let (dir, name) = (dirs[pick(step[1], dirs.len())], NAMES[pick(step[2], 3)]);
        let (dir2, name2) = (dirs[pick(step[3], dirs.len())], NAMES[pick(step[4], 3)]);
        let at = tree.names.get(&(dir, name.as_bytes().to_vec())).copied();
        let at2 = tree.names.get(&(dir2, name2.as_bytes().to_vec())).copied();
        let is_dir = |ino: u64| tree.nodes[&ino].dir;
        let change = match (step[0] % 12, at, at2) {
            (0, None, _) => Some(create(dir, name, next_inode)),
            (1, None, _) => Some(mkdir(dir, name, next_inode)),
            (0..=2, Some(ino), _) if is_dir(ino) => Some(rmdir(dir, name, ino)),
            (0..=2, Some(ino), _) => Some(unlink(dir, name, ino)),
            (3 | 4, Some(ino), _) if at2 != Some(ino) => {
                Some(rename(dentry(dir, name), dentry(dir2, name2), ino, at2, is_dir(ino)))
            }
            (5, Some(a), Some(b)) if a != b => {
                let (a, b) = ((dentry(dir, name), InodeId(a)), (dentry(dir2, name2), InodeId(b)));
                Some(Change::Exchange { a, b, time: Timestamp::EPOCH })
            }
            (6, None, _) if !files.is_empty() => Some(link(dir, name, files[pick(step[3], files.len())])),
            (7 | 8, ..) if !files.is_empty() => {
                let hash = chunk(chunks[pick(step[2], chunks.len())]);
                Some(content(files[pick(step[1], files.len())], changes.len() as u64 + 1, hash))
            }
            (9, ..) => {
                let ino = nodes[pick(step[1], nodes.len())];
                let mtime = step[3].is_multiple_of(2).then(|| time(1000 + u64::from(step[4])));
                Some(setattr(ino, step[2].is_multiple_of(2).then_some(step[3].into()), mtime))
            }
            (10, ..) => {
                let (ino, name) = (InodeId(nodes[pick(step[1], nodes.len())]), vec![step[2] % 2]);
                Some(Change::Setxattr { ino, name, value: vec![step[3]], mode: None, ctime: Timestamp::EPOCH })
            }
            (11, ..) => {
                // A content record never names a chunk that an earlier repack emptied (O5).
                let from = chunks.remove(pick(step[1], chunks.len()));
                chunks.push(next_chunk);
                next_chunk += 1;
                Some(repack(chunk(from), chunk(next_chunk - 1)))
            }
            _ => None,
        };
        let Some(change) = change else { continue };
        let mut after = tree.clone();
        // What a filesystem refuses (a full directory removed, a directory over a file, a circle) is not history.
        let over_other_kind = matches!(&change, Change::Rename { ino, replaced: Some(replaced), .. }
            if is_dir(ino.0) != is_dir(replaced.0));
        if over_other_kind || after.apply(changes.len() as u64 + 1, &change).is_err() {
            continue;
        }
        next_inode += u64::from(matches!(change, Change::Create { .. } | Change::Mkdir { .. }));
        tree = after;
        changes.push((change, step[4] >= 250));
    }
    let synced: Vec<bool> = changes.iter().map(|(_, synced)| *synced).collect();
    let mut history = history(changes.into_iter().map(|(change, _)| change).collect());
    for ((_, change, footprint), synced) in history.iter_mut().zip(synced) {
        if synced && matches!(change, Change::Content(_)) {
            *footprint = footprint.clone().fsynced();
        }
    }
    history
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases.max(2000), ..ProptestConfig::default() })]

    #[test]
    fn o7_every_order_that_the_rule_allows_gives_the_same_tree(
        steps in prop::collection::vec(any::<[u8; 5]>(), 1..60),
        waits in prop::collection::vec(any::<u64>(), 1..4),
    ) {
        let history = build(&steps);
        let wanted = in_order(&history);
        let order = rounds(&history, |round, seq| waits[round] >> (seq % 64) & 1 == 1, waits.len());
        prop_assert_eq!(order.len(), history.len());
        // Each prefix must apply, too: it is what a restore at that moment sees.
        match replay(&history, &order) {
            Ok(tree) => prop_assert_eq!(tree, wanted, "order {:?} of {:?}", order, history),
            Err(error) => prop_assert!(false, "{} in order {:?} of {:?}", error, order, history),
        }
    }

    #[test]
    fn o6_what_is_shipped_is_closed_under_conflicts_and_fsync(
        steps in prop::collection::vec(any::<[u8; 5]>(), 1..40),
        waits in any::<u64>(),
    ) {
        let history = build(&steps);
        let mut first_round = rounds(&history, |_, seq| waits >> (seq % 64) & 1 == 1, 1);
        let mut left = Deferred::new();
        // The slow statement of the rule: pair by pair.
        for (position, seq) in first_round.iter().enumerate() {
            let (_, _, later) = &history[*seq as usize - 1];
            let overtaken = (1..*seq).filter(|earlier| !first_round[..position].contains(earlier));
            for (_, _, earlier) in overtaken.map(|earlier| &history[earlier as usize - 1]) {
                let meet = |a: &[Key], b: &[Key]| a.iter().any(|key| b.contains(key));
                prop_assert!(!earlier.is_overtaken_by_nothing && !later.overtakes_nothing);
                prop_assert!(!meet(&later.writes, &earlier.writes) && !meet(&later.writes, &earlier.reads));
                prop_assert!(!meet(&later.reads, &earlier.writes));
            }
        }
        first_round.clear();
        history.iter().for_each(|(_, _, footprint)| left.insert(footprint));
        prop_assert_eq!(left.len(), history.len());
    }
}

/// Holds `held` back for one round. With the rule the tree is right; with `drop` applied to the footprints it is not.
#[track_caller]
fn clause_is_needed(changes: Vec<Change>, held: &[u64], drop: impl Fn(&Change, &mut Footprint)) {
    let mut history = history(changes);
    let wanted = in_order(&history);
    let order = rounds(&history, |_, seq| held.contains(&seq), 1);
    assert_eq!(replay(&history, &order), Ok(wanted.clone()), "order {order:?}");
    for (_, change, footprint) in &mut history {
        drop(change, footprint);
    }
    let order = rounds(&history, |_, seq| held.contains(&seq), 1);
    assert_ne!(replay(&history, &order), Ok(wanted), "the clause makes no difference in order {order:?}");
}

#[test]
fn o7_a_name_is_not_taken_before_it_is_free() {
    clause_is_needed(vec![create(1, "a", 2), unlink(1, "a", 2), create(1, "a", 3)], &[1, 2], |_, footprint| {
        footprint.writes.retain(|key| !matches!(key, Key::Dentry(_)))
    });
}

#[test]
fn o7_an_inode_is_changed_in_order() {
    clause_is_needed(
        vec![create(1, "a", 2), content(2, 2, chunk(1)), content(2, 3, chunk(2))],
        &[2],
        |_, footprint| footprint.writes.retain(|key| !matches!(key, Key::Inode(_))),
    );
}

#[test]
fn o7_a_rename_waits_for_the_content_of_what_it_moves() {
    let changes = vec![
        create(1, "a", 2),
        create(1, "t", 3),
        content(3, 3, chunk(1)),
        rename(dentry(1, "t"), dentry(1, "a"), 3, Some(2), false),
    ];
    let history = history(changes);
    let order = rounds(&history, |_, seq| seq == 3, 1);
    assert_eq!(order, [1, 2, 3, 4], "write a copy, rename it over: never the name without the bytes");
}

#[test]
fn o7_a_rename_writes_what_it_replaces() {
    clause_is_needed(
        vec![
            create(1, "a", 2),
            create(1, "t", 3),
            setattr(2, Some(0o600), None),
            rename(dentry(1, "t"), dentry(1, "a"), 3, Some(2), false),
        ],
        &[3],
        |change, footprint| {
            if let Change::Rename { replaced: Some(replaced), .. } = change {
                footprint.writes.retain(|key| *key != Key::Inode(*replaced));
            }
        },
    );
}

#[test]
fn o7_a_rename_over_a_directory_waits_until_it_is_empty() {
    clause_is_needed(
        vec![
            mkdir(1, "d", 2),
            create(2, "a", 3),
            mkdir(1, "e", 4),
            unlink(2, "a", 3),
            rename(dentry(1, "e"), dentry(1, "d"), 4, Some(2), true),
        ],
        &[4],
        |change, footprint| {
            if let Change::Rename { replaced: Some(replaced), .. } = change {
                footprint.writes.retain(|key| *key != Key::Directory(*replaced));
            }
        },
    );
}

#[test]
fn o7_nothing_enters_a_directory_before_it_exists_and_it_goes_only_when_empty() {
    let no_directory_of_its_own = |change: &Change, footprint: &mut Footprint| {
        if matches!(change, Change::Mkdir { .. } | Change::Rmdir { .. }) {
            footprint.writes.retain(|key| !matches!(key, Key::Directory(_)));
        }
    };
    clause_is_needed(vec![mkdir(1, "d", 2), create(2, "a", 3)], &[1], no_directory_of_its_own);
    let changes = vec![mkdir(1, "d", 2), create(2, "a", 3), unlink(2, "a", 3), rmdir(1, "d", 2)];
    clause_is_needed(changes.clone(), &[3], no_directory_of_its_own);
    clause_is_needed(changes, &[3], |_, footprint| footprint.reads.retain(|key| !matches!(key, Key::Directory(_))));
}

#[test]
fn o7_times_that_a_directory_gets_itself_keep_their_order_with_those_from_its_names() {
    // create sets mtime and ctime of the parent, chmod only its ctime; one times_seq cannot hold both the other way round.
    let held_create = vec![mkdir(1, "d", 2), create(2, "a", 3), setattr(2, Some(0o40700), None)];
    clause_is_needed(held_create, &[2], |change, footprint| {
        if matches!(change, Change::Setattr { .. }) {
            footprint.writes.retain(|key| !matches!(key, Key::Directory(_)));
        }
    });
    let held_create = vec![mkdir(1, "d", 2), create(2, "a", 3), rename(dentry(1, "d"), dentry(1, "e"), 2, None, true)];
    clause_is_needed(held_create, &[2], |change, footprint| {
        if matches!(change, Change::Rename { .. }) {
            footprint.writes.retain(|key| !matches!(key, Key::Directory(_)));
        }
    });
}

#[test]
fn o7_moving_a_directory_to_another_parent_is_a_barrier() {
    // /a/x/b → /b, then /a → /b/c/a. The other way round a hangs below itself, and no key is common to the two.
    let changes = vec![
        mkdir(1, "a", 2),
        mkdir(2, "x", 3),
        mkdir(3, "b", 4),
        mkdir(4, "c", 5),
        rename(dentry(3, "b"), dentry(1, "b"), 4, None, true),
        rename(dentry(1, "a"), dentry(5, "a"), 2, None, true),
    ];
    clause_is_needed(changes, &[5], |_, footprint| {
        (footprint.overtakes_nothing, footprint.is_overtaken_by_nothing) = (false, false);
    });
    let barrier = Footprint::of(&rename(dentry(1, "a"), dentry(2, "a"), 9, None, true));
    let unrelated = Footprint::of(&create(7, "z", 8));
    let mut deferred = Deferred::new();
    deferred.insert(&barrier);
    assert!(!deferred.admits(&unrelated), "nothing overtakes it");
    let mut deferred = Deferred::new();
    deferred.insert(&unrelated);
    assert!(!deferred.admits(&barrier), "it overtakes nothing");
    let within = Footprint::of(&rename(dentry(1, "a"), dentry(1, "b"), 9, None, true));
    assert!(deferred.admits(&within), "a directory that only changes its name is none");
    let exchange =
        Change::Exchange { a: (dentry(1, "a"), InodeId(9)), b: (dentry(2, "b"), InodeId(10)), time: Timestamp::EPOCH };
    assert!(Footprint::of(&exchange).overtakes_nothing, "an exchange across parents may hold a directory");
}

#[test]
fn o7_the_rule_is_transitive() {
    // 3 waits; 4 conflicts with 3; 5 conflicts only with 4.
    let history = history(vec![
        create(1, "a", 2),
        create(1, "b", 3),
        content(2, 3, chunk(1)),
        rename(dentry(1, "a"), dentry(1, "c"), 2, None, false),
        create(1, "a", 4),
    ]);
    assert_eq!(rounds(&history, |_, seq| seq == 3, 1), [1, 2, 3, 4, 5]);
    let mut only_waiting = Deferred::new();
    only_waiting.insert(&history[2].2);
    assert!(only_waiting.admits(&history[4].2), "against the waiting record alone it would pass");
    assert!(replay(&history, &[1, 2, 5]).is_err(), "and the name would be taken twice");
}

#[test]
fn o5_a_repack_and_the_content_that_names_its_chunk_keep_their_order() {
    let changes = vec![create(1, "a", 2), content(2, 2, chunk(1)), repack(chunk(1), chunk(9))];
    clause_is_needed(changes, &[2], |_, footprint| footprint.reads.retain(|key| !matches!(key, Key::Chunk(_))));
}

#[test]
fn o5_a_repack_of_a_repacked_chunk_comes_after_it() {
    let changes =
        vec![create(1, "a", 2), content(2, 2, chunk(1)), repack(chunk(1), chunk(8)), repack(chunk(8), chunk(9))];
    clause_is_needed(changes, &[3], |change, footprint| {
        if matches!(change, Change::Repack { .. }) {
            footprint.reads.clear();
        }
    });
}

#[test]
fn o5_no_repack_passes_an_open_slot_and_none_of_them_it() {
    let (slot, repack) = (Footprint::of_open_slot(InodeId(2)), Footprint::of(&repack(chunk(1), chunk(2))));
    let mut deferred = Deferred::new();
    deferred.insert(&slot);
    assert!(!deferred.admits(&repack));
    let mut deferred = Deferred::new();
    deferred.insert(&repack);
    assert!(!deferred.admits(&slot));
}

#[test]
fn o6_nothing_overtakes_a_slot_that_an_fsync_reserved() {
    let slot = Footprint::of_open_slot(InodeId(2));
    let unrelated = Footprint::of(&create(1, "z", 9));
    let mut deferred = Deferred::new();
    deferred.insert(&slot);
    assert!(deferred.admits(&unrelated));
    let synced = slot.clone().fsynced();
    let mut deferred = Deferred::new();
    deferred.insert(&synced);
    assert!(!deferred.admits(&unrelated));
}

#[test]
fn o7_beyond_ten_thousand_deferred_records_the_order_is_plain() {
    let unrelated = Footprint::of(&create(1, "z", 9));
    let slots: Vec<Footprint> =
        (0..=DEFERRED_MAX as u64).map(|ino| Footprint::of_open_slot(InodeId(100 + ino))).collect();
    let mut deferred = Deferred::new();
    slots[1..].iter().for_each(|slot| deferred.insert(slot));
    assert!(deferred.admits(&unrelated));
    deferred.insert(&slots[0]);
    assert!(!deferred.admits(&unrelated));
}
