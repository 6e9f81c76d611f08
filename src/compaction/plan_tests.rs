use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::id::ChunkHash;

const MIB: u64 = 1 << 20;
const DAY_SECS: u64 = 24 * 3600;

fn policy() -> Policy {
    Policy {
        chunk_size: 4 * MIB,
        rate: MIB,
        min_garbage: 16 * MIB,
        quiet: Duration::from_secs(600),
        settle: Duration::from_secs(60),
        pieces_max: 4,
        lag_max: 64 * MIB,
    }
}

fn sparse(id: u64, length: u64, live: u64) -> SparseChunk {
    SparseChunk { id: ChunkId(id), hash: ChunkHash::of(&id.to_le_bytes()), length, live }
}

fn reference(manifest: u64, offset: u64, length: u64, chunk: u64, chunk_offset: u64) -> Reference {
    Reference { manifest: ManifestId(manifest), offset, length, chunk: ChunkId(chunk), chunk_offset }
}

fn at(secs: u64) -> Instant {
    Instant::START + Duration::from_secs(secs)
}

#[test]
fn s10_it_begins_when_much_is_to_be_freed_and_goes_on_until_little_is() {
    let policy = policy();
    let garbage = |mib: u64| vec![sparse(1, mib * MIB + MIB / 2, MIB / 2)];
    assert!(!policy.goes_on(false, &garbage(15)));
    assert!(policy.goes_on(false, &garbage(16)));
    assert!(policy.goes_on(true, &garbage(4)));
    assert!(!policy.goes_on(true, &garbage(3)));
    assert!(!policy.goes_on(true, &[]));
}

#[test]
fn s10_the_emptiest_chunks_go_together_into_one_of_full_size() {
    let policy = policy();
    let half = sparse(1, 4 * MIB, 2 * MIB - 1);
    let chunks = vec![half, sparse(9, 4 * MIB, 10), sparse(5, 4 * MIB, MIB), sparse(7, 4 * MIB, MIB)];
    let ids = |group: Option<Vec<SparseChunk>>| group.unwrap().iter().map(|chunk| chunk.id.0).collect::<Vec<_>>();
    assert_eq!(ids(policy.group(chunks)), [5, 7, 9], "and in their order");
    assert_eq!(policy.group(vec![]), None);
    assert_eq!(ids(policy.group(vec![sparse(1, 64 * MIB, 20 * MIB)])), [1], "one of another chunk size, too");
}

#[test]
fn s10_bytes_written_are_at_most_those_of_programs_in_a_day_or_the_rate() {
    let mut budget = Budget::new(MIB);
    budget.note(at(0), 0);
    assert!(budget.allows(4 * MIB));
    // Idle for a day: the rate, and only a minute of it saved up.
    let (mut secs, mut new_bytes, mut written) = (0, 0, 0);
    while budget.allows(4 * MIB) {
        budget.spend(4 * MIB, 0);
        written += 4 * MIB;
        new_bytes += 4 * MIB;
        budget.note(at(secs), new_bytes);
        assert!(written <= 64 * MIB, "it ends");
    }
    assert_eq!(written / MIB, 64);
    let most = (DAY_SECS + 64 + 10) * MIB;
    while secs < DAY_SECS {
        secs += 10;
        budget.note(at(secs), new_bytes);
        while budget.allows(4 * MIB) {
            budget.spend(4 * MIB, 0);
            written += 4 * MIB;
            new_bytes += 4 * MIB;
            assert!(written <= most, "it ends");
        }
    }
    assert!((most * 9 / 10..=most).contains(&written), "{} MiB", written / MIB);
    // Programs write 1 TiB: as much may be rewritten, even later on the same day.
    new_bytes += MIB << 20;
    budget.note(at(secs + 10), new_bytes);
    budget.note(at(secs + 3600), new_bytes);
    let before = written;
    while budget.allows(4 * MIB) {
        budget.spend(4 * MIB, 0);
        written += 4 * MIB;
        assert!(written - before <= (MIB << 20) * 51 / 50, "it ends");
    }
    let share = (written - before) as f64 / (MIB << 20) as f64;
    assert!((0.9..=1.02).contains(&share), "{share}");
    // What is fetched costs, too.
    let mut budget = Budget::new(MIB);
    budget.spend(MIB, 64 * MIB);
    assert!(!budget.allows(MIB));
}

#[test]
fn s10_what_changes_is_not_quiet() {
    let mut quiet = Quiet::default();
    assert_eq!(quiet.note(1, 7, at(0)), Duration::ZERO);
    assert_eq!(quiet.note(1, 7, at(50)), Duration::from_secs(50));
    assert_eq!(quiet.note(1, 8, at(60)), Duration::ZERO, "it changed");
    assert_eq!(quiet.note(1, 8, at(70)), Duration::from_secs(10));
    quiet.keep([2].into_iter());
    assert_eq!(quiet.note(1, 8, at(90)), Duration::ZERO, "it was gone");
}

#[test]
fn d8_a_transaction_moves_few_references() {
    let references: Vec<_> = (0..1000).map(|n| reference(n, 0, 4096, 1, n * 4096)).collect();
    let rewrite = Rewrite::of_chunks(&[(sparse(1, 8 * MIB, 4_096_000), references)]).unwrap();
    let source = &rewrite.sources[0];
    assert_eq!(source.moves.len(), 1000);
    assert_eq!(source.ends.len(), 1000_usize.div_ceil(BATCH));
    assert_eq!(source.ends.last(), Some(&1000));
    // One range of many files is one move: all of them go at once.
    let references: Vec<_> = (0..100).map(|n| reference(n, 0, 4096, 1, 0)).collect();
    let rewrite = Rewrite::of_chunks(&[(sparse(1, MIB, 4096), references)]).unwrap();
    assert_eq!((rewrite.length, rewrite.sources[0].ends.clone()), (4096, vec![1]));
}

#[test]
fn s10_areas_with_too_many_pieces_are_found_wherever_pages_end() {
    let size = 100;
    // Areas 0, 2 and 3 of manifest 1 have 5, 4 and 6 pieces; area 0 of manifest 2 has 5.
    let mut rows = Vec::new();
    for (manifest, area, pieces) in [(1, 0, 5), (1, 2, 4), (1, 3, 6), (2, 0, 5)] {
        rows.extend((0..pieces).map(|n| reference(manifest, area * size + n * 10, 5, n + 1, 0)));
    }
    let mut found = BTreeSet::new();
    for page in [1, 3, 7, 100] {
        let mut areas = Areas::new(size, 4);
        let mut dense: Vec<_> = rows.chunks(page).flat_map(|page| areas.add(page)).collect();
        dense.extend(areas.end());
        let names: Vec<_> = dense.iter().map(|(area, _)| (area.manifest.0, area.index)).collect();
        assert_eq!(names, [(1, 0), (1, 3), (2, 0)], "pages of {page}");
        assert_eq!((areas.take_count(), areas.take_count()), (3, 0));
        found.insert(dense);
    }
    assert_eq!(found.len(), 1, "and look the same");
}

/// What each byte of the new chunk is: (chunk, offset).
fn bytes_of(rewrite: &Rewrite) -> Vec<Option<(u64, u64)>> {
    let mut bytes = vec![None; rewrite.length as usize];
    for source in &rewrite.sources {
        let mut end = 0;
        for piece in &source.moves {
            assert!(piece.length > 0 && piece.offset >= end && piece.chunk == 0, "moves ascend: {:?}", source.moves);
            end = piece.offset + piece.length;
            for i in 0..piece.length {
                let byte = &mut bytes[(piece.chunk_offset + i) as usize];
                assert!(byte.replace((source.chunk.0, piece.offset + i)).is_none(), "a byte is written twice");
            }
        }
        assert_eq!(source.ends.last(), Some(&source.moves.len()));
        assert!(source.ends.windows(2).all(|pair| pair[0] < pair[1]) && source.ends[0] > 0);
    }
    bytes
}

proptest! {
    #[test]
    fn all_that_is_referred_to_and_nothing_else_is_laid_out(
        references in prop::collection::vec((0..4u64, 1..4u64, 1..20u64, 0..60u64), 0..30),
    ) {
        let chunks: Vec<(SparseChunk, Vec<Reference>)> = (1..4)
            .map(|id| {
                let own = references.iter().filter(|(_, chunk, ..)| *chunk == id);
                let own = own.map(|&(manifest, chunk, length, offset)| reference(manifest, 0, length, chunk, offset));
                (sparse(id, 100, 40), own.collect())
            })
            .collect();
        let wanted: BTreeSet<(u64, u64)> = references
            .iter()
            .flat_map(|&(_, chunk, length, offset)| (offset..offset + length).map(move |byte| (chunk, byte)))
            .collect();
        let Some(rewrite) = Rewrite::of_chunks(&chunks) else {
            prop_assert!(wanted.is_empty());
            return Ok(());
        };
        let bytes = bytes_of(&rewrite);
        prop_assert_eq!(bytes.iter().flatten().copied().collect::<BTreeSet<_>>(), wanted);
        prop_assert!(bytes.iter().all(Option::is_some), "no gaps");
        // A reference is not torn: it is as many extents after as before.
        for &(_, chunk, length, offset) in &references {
            let source = rewrite.sources.iter().find(|source| source.chunk.0 == chunk).unwrap();
            let whole = |piece: &&Extent| piece.offset <= offset && offset + length <= piece.offset + piece.length;
            prop_assert_eq!(source.moves.iter().filter(whole).count(), 1);
        }
    }

    #[test]
    fn an_area_is_laid_out_in_the_order_of_the_file(
        pieces in prop::collection::vec((0..6u64, 1..4u64, 1..20u64, 0..60u64), 1..30),
        start in 0..50u64,
        length in 1..200u64,
    ) {
        let mut rows = Vec::new();
        let mut offset = 0;
        for (gap, chunk, length, chunk_offset) in pieces {
            offset += gap;
            rows.push(reference(1, offset, length, chunk, chunk_offset));
            offset += length;
        }
        let area = start..start + length;
        let in_order: Vec<(u64, u64)> = rows
            .iter()
            .flat_map(|row| (0..row.length).map(move |i| (row.offset + i, (row.chunk.0, row.chunk_offset + i))))
            .filter(|(byte, _)| area.contains(byte))
            .map(|(_, from)| from)
            .collect();
        // Each byte of a chunk once, where it comes first.
        let mut seen = BTreeSet::new();
        let wanted: Vec<_> = in_order.into_iter().filter(|from| seen.insert(*from)).collect();
        match Rewrite::of_area(&rows, area) {
            None => prop_assert!(wanted.is_empty()),
            Some(rewrite) => prop_assert_eq!(bytes_of(&rewrite).into_iter().flatten().collect::<Vec<_>>(), wanted),
        }
    }
}
