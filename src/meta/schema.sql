-- A change here needs a step in migrate.rs, so that state directories of earlier versions come to have it.
--
-- Shared tables: the filesystem itself. A checkpoint carries them (FORMATS.md, meta.sqlite), without the columns
-- marked "local" and with `extent.ino` in place of `extent.manifest`.
CREATE TABLE filesystem (key TEXT PRIMARY KEY, value ANY NOT NULL) STRICT, WITHOUT ROWID;
  -- filesystem (uuid), name, chunk_size (bytes), created; local: format ("1"), scrub.BIT (a pass that is under way), scrubbed.BIT (when the last one ended), steady (meta::steady)
CREATE TABLE inode (
  ino INTEGER PRIMARY KEY,
  mode INTEGER NOT NULL,                           -- st_mode with type bits
  uid INTEGER NOT NULL, gid INTEGER NOT NULL, rdev INTEGER NOT NULL,
  nlink INTEGER NOT NULL,                          -- names; a directory 2 + its subdirectories; 0 = orphan, lives while open
  size INTEGER NOT NULL,                           -- bytes; of the newest slot, filled or not
  generation INTEGER NOT NULL,                     -- of the newest slot, filled or not
  atime INTEGER NOT NULL, atime_ns INTEGER NOT NULL,
  mtime INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
  ctime INTEGER NOT NULL, ctime_ns INTEGER NOT NULL,
  times_seq INTEGER NOT NULL,                      -- directories: seq that set mtime and ctime last; else 0
  manifest INTEGER,                                -- local: extents of the committed content (D8); NULL = none, all zeros
  last_seq INTEGER NOT NULL,                       -- local: newest record that names this inode (O1: may a slot be renewed in place?)
  parent INTEGER NOT NULL,                         -- local: the directory of the name it got last; a hint for order and for paths
  allocated INTEGER NOT NULL DEFAULT 0             -- local: sum of the lengths of the manifest's extents, for st_blocks
) STRICT;
CREATE INDEX inode_orphan ON inode (ino) WHERE nlink = 0;   -- local: what recovery removes
CREATE TABLE dirent (
  parent INTEGER NOT NULL, name BLOB NOT NULL, ino INTEGER NOT NULL,
  cookie INTEGER NOT NULL,                         -- local: ascending in order of naming; the position of readdir, stable under change
  PRIMARY KEY (parent, name)
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX dirent_cookie ON dirent (parent, cookie);
CREATE TABLE symlink (ino INTEGER PRIMARY KEY, target BLOB NOT NULL) STRICT;
CREATE TABLE xattr (ino INTEGER NOT NULL, name BLOB NOT NULL, value BLOB NOT NULL, PRIMARY KEY (ino, name)) STRICT, WITHOUT ROWID;
CREATE TABLE chunk (
  id INTEGER PRIMARY KEY,                          -- ascending in order of first commit
  hash BLOB NOT NULL UNIQUE,                       -- 32 bytes
  length INTEGER NOT NULL,                         -- bytes
  dead_seq INTEGER,                                -- journal head + 1 when its last reference went; NULL = referenced (T5)
  bytes_referenced INTEGER NOT NULL,               -- local: sum over extents; 0 = garbage (T5)
  placed INTEGER NOT NULL DEFAULT 0,               -- local: one bit per target that confirmed it (T6)
  claimed INTEGER NOT NULL DEFAULT 0,              -- local: bits that a restore took over unseen: readable, not evictable (D6)
  incomplete INTEGER NOT NULL                      -- local: 1 until every following target has its bit (T6)
) STRICT;
CREATE INDEX chunk_todo ON chunk (id) WHERE incomplete = 1;
CREATE INDEX chunk_dead ON chunk (dead_seq) WHERE dead_seq IS NOT NULL;
CREATE INDEX chunk_claimed ON chunk (id) WHERE claimed <> 0;
CREATE INDEX chunk_sparse ON chunk (id) WHERE dead_seq IS NULL AND length - 2 * bytes_referenced > 0;   -- S10: worth a rewrite
CREATE TABLE extent (
  manifest INTEGER NOT NULL, offset INTEGER NOT NULL,
  length INTEGER NOT NULL,
  chunk INTEGER NOT NULL, chunk_offset INTEGER NOT NULL,
  PRIMARY KEY (manifest, offset)
) STRICT, WITHOUT ROWID;
CREATE INDEX extent_chunk ON extent (chunk, chunk_offset);                     -- local: who refers to a chunk (O5)
CREATE TABLE slot (
  seq INTEGER PRIMARY KEY, ino INTEGER NOT NULL, generation INTEGER NOT NULL,
  session INTEGER NOT NULL,                        -- local
  first_seq INTEGER NOT NULL,                      -- local: where the session's slot was first taken (O6: start of the unit)
  head INTEGER NOT NULL,                           -- local: journal head when its bytes were last renewed (O6: end of the unit)
  fsynced INTEGER NOT NULL,                        -- local: 1 = reserved by an fsync; nothing overtakes it (O6)
  size INTEGER NOT NULL,                           -- local, with the times: what the content record will carry
  mtime INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
  ctime INTEGER NOT NULL, ctime_ns INTEGER NOT NULL
) STRICT;
CREATE INDEX slot_ino ON slot (ino);

-- Local tables: this machine's.
CREATE TABLE counter (
  id INTEGER PRIMARY KEY CHECK (id = 1),
  seq INTEGER NOT NULL,                            -- journal head
  next_inode INTEGER NOT NULL, next_manifest INTEGER NOT NULL,
  next_cookie INTEGER NOT NULL,
  exported_seq INTEGER NOT NULL,                   -- S of the newest snapshot: a slot at or below it is never renewed in place (T3)
  epoch INTEGER NOT NULL,                          -- of the newest mount
  writer TEXT NOT NULL,
  boot_id TEXT NOT NULL,                           -- of the newest mount: another one means a power cut or reboot (S6)
  mounts INTEGER NOT NULL,                         -- number of mounts: chunk files sealed before this one are checked by BLAKE3 (S5)
  inodes INTEGER NOT NULL, bytes INTEGER NOT NULL  -- rows of `inode` and the sum of their sizes, for statfs
) STRICT;
CREATE TABLE journal (
  seq INTEGER PRIMARY KEY,
  kind INTEGER NOT NULL,                           -- meta::journal::Kind
  ino INTEGER NOT NULL,                            -- the inode it is about (born, named, changed)
  body BLOB                                        -- version byte, postcard of format::record::Change; NULL = open slot
) STRICT;
CREATE TABLE unit (first INTEGER PRIMARY KEY, last INTEGER NOT NULL) STRICT;   -- runs of records that ship together (O6)
CREATE TABLE session (
  id INTEGER PRIMARY KEY, ino INTEGER NOT NULL, generation INTEGER NOT NULL,   -- generation: of the content it was based on
  whole INTEGER NOT NULL,                          -- 1 = nothing of the earlier content shows through
  base_limit INTEGER NOT NULL,                     -- bytes of the earlier content that may show through (shrinking truncates lower it)
  slot INTEGER,                                    -- its open slot
  synced_size INTEGER,                             -- S1: bytes of a whole session known to be on disk; NULL = never synced
  size INTEGER NOT NULL,                           -- with the times: of the committed content, put back by a void "lost"
  mtime INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
  ctime INTEGER NOT NULL, ctime_ns INTEGER NOT NULL
) STRICT;
CREATE INDEX session_ino ON session (ino);
CREATE TABLE chunk_file (
  id INTEGER PRIMARY KEY,
  name TEXT NOT NULL UNIQUE,                       -- relative to the state directory: chunks/xx/…, fetched/xx/…
  bytes INTEGER NOT NULL,                          -- allocated on disk
  mount INTEGER NOT NULL                           -- counter.mounts when it was sealed or fetched (S5)
) STRICT;
CREATE TABLE location (
  chunk INTEGER NOT NULL, file INTEGER NOT NULL,
  chunk_offset INTEGER NOT NULL,
  length INTEGER NOT NULL,
  file_offset INTEGER NOT NULL,
  crc32c INTEGER NOT NULL,                         -- of exactly these bytes (S5)
  PRIMARY KEY (chunk, file, chunk_offset)
) STRICT, WITHOUT ROWID;
CREATE INDEX location_file ON location (file);
CREATE TABLE outline (                                                          -- of chunks from 1 MiB on: by which parts of them are checked
  chunk INTEGER PRIMARY KEY,
  leads BLOB NOT NULL                              -- chunk::outline: chaining values of 32 bytes each, which lead to the hash
) STRICT;
CREATE TRIGGER chunk_outline AFTER DELETE ON chunk BEGIN DELETE FROM outline WHERE chunk = old.id; END;
CREATE TABLE orphan (manifest INTEGER PRIMARY KEY) STRICT;                      -- given up, its references are released in batches (D8)
CREATE TABLE target (
  bit INTEGER PRIMARY KEY,                         -- place in chunk.placed
  uuid TEXT NOT NULL UNIQUE,                       -- T1; drawn here, written into tandemfs.json at first contact
  name TEXT NOT NULL, uri TEXT NOT NULL,           -- as configured last; uri without secrets
  initialised INTEGER NOT NULL,                    -- 1 = its tandemfs.json was written or seen: never again made anew (T1)
  mode TEXT NOT NULL,                              -- follow | resync | blocked | fenced
  reason TEXT,
  base_seq INTEGER NOT NULL,                       -- S of the state it holds or resyncs to (T4, T5)
  position INTEGER NOT NULL,                       -- highest seq put into a segment; all below too, except `deferred`
  shipped_seq INTEGER NOT NULL,                    -- low water of confirmed segments and complete checkpoints (T2, T3)
  n INTEGER NOT NULL,                              -- newest segment built
  hash TEXT NOT NULL,                              -- its hash; '' before the first
  confirmed_n INTEGER NOT NULL, confirmed_hash TEXT NOT NULL, confirmed_seq INTEGER NOT NULL,
  confirmed_epoch INTEGER NOT NULL DEFAULT 0, confirmed_writer TEXT NOT NULL DEFAULT '00000000',   -- whose segment that is
  epoch INTEGER NOT NULL, writer TEXT NOT NULL,    -- whose segments n and hash belong to
  contact_epoch INTEGER NOT NULL,                  -- newest epoch whose writers/ file is on the target
  segment_bytes INTEGER NOT NULL, segment_count INTEGER NOT NULL,  -- since its last complete checkpoint
  paused_until INTEGER,                            -- seconds since 1970; NULL = not paused
  whole_secs INTEGER,                              -- of a resyncer: the moment whose state it holds; NULL = it holds none
  relist INTEGER NOT NULL DEFAULT 0                -- 1 = it lost objects: what it still has must be listed first (T7)
) STRICT;
CREATE TABLE tally (                                                            -- sums kept by the transactions that change them (D8)
  bit INTEGER PRIMARY KEY,                         -- of a target
  pending_chunks INTEGER NOT NULL, pending_bytes INTEGER NOT NULL,   -- chunks with incomplete = 1 that lack its bit
  placed_chunks INTEGER NOT NULL, placed_bytes INTEGER NOT NULL      -- chunks with its bit
) STRICT;
CREATE TABLE chunk_sum (                                                        -- the same over all chunks, kept by triggers
  id INTEGER PRIMARY KEY CHECK (id = 1),
  incomplete_bytes INTEGER NOT NULL,               -- chunks with incomplete = 1: what some pinning target lacks, each once
  alive_bytes INTEGER NOT NULL DEFAULT 0,          -- lengths of chunks that something refers to
  live_bytes INTEGER NOT NULL DEFAULT 0,           -- of these, bytes that something refers to: min(bytes_referenced, length) (S10)
  new_bytes INTEGER NOT NULL DEFAULT 0             -- lengths of all chunks that ever came
) STRICT;
INSERT INTO chunk_sum (id, incomplete_bytes) VALUES (1, 0);
CREATE TRIGGER chunk_inserted AFTER INSERT ON chunk WHEN new.incomplete <> 0 BEGIN
  UPDATE chunk_sum SET incomplete_bytes = incomplete_bytes + new.length;
END;
CREATE TRIGGER chunk_changed AFTER UPDATE OF incomplete ON chunk WHEN new.incomplete <> old.incomplete BEGIN
  UPDATE chunk_sum SET incomplete_bytes = incomplete_bytes + (new.incomplete - old.incomplete) * new.length;
END;
CREATE TRIGGER chunk_deleted AFTER DELETE ON chunk WHEN old.incomplete <> 0 BEGIN
  UPDATE chunk_sum SET incomplete_bytes = incomplete_bytes - old.length;
END;
CREATE TRIGGER chunk_came AFTER INSERT ON chunk BEGIN
  UPDATE chunk_sum SET alive_bytes = alive_bytes + (new.bytes_referenced > 0) * new.length,
    live_bytes = live_bytes + min(new.bytes_referenced, new.length), new_bytes = new_bytes + new.length;
END;
CREATE TRIGGER chunk_lives AFTER UPDATE OF bytes_referenced ON chunk WHEN new.bytes_referenced <> old.bytes_referenced BEGIN
  UPDATE chunk_sum SET alive_bytes = alive_bytes + ((new.bytes_referenced > 0) - (old.bytes_referenced > 0)) * new.length,
    live_bytes = live_bytes + min(new.bytes_referenced, new.length) - min(old.bytes_referenced, old.length);
END;
CREATE TRIGGER chunk_went AFTER DELETE ON chunk WHEN old.bytes_referenced > 0 BEGIN
  UPDATE chunk_sum SET alive_bytes = alive_bytes - old.length,
    live_bytes = live_bytes - min(old.bytes_referenced, old.length);
END;
CREATE TABLE deferred (bit INTEGER NOT NULL, seq INTEGER NOT NULL, PRIMARY KEY (bit, seq)) STRICT, WITHOUT ROWID;
CREATE TABLE discarded (                                                        -- segments that may lie there and do not count: seen at restore, of another history or a unit without end (O6); given up when the target lost others (T7)
  bit INTEGER NOT NULL, n INTEGER NOT NULL,
  epoch INTEGER NOT NULL, writer TEXT NOT NULL,
  PRIMARY KEY (bit, n, epoch, writer)
) STRICT, WITHOUT ROWID;
CREATE TABLE lineage (                                                          -- writers whose history this state was restored from (T7)
  epoch INTEGER NOT NULL, writer TEXT NOT NULL,
  seq INTEGER NOT NULL,                            -- its records up to here are in this state; those above are not
  PRIMARY KEY (epoch, writer)
) STRICT, WITHOUT ROWID;
CREATE TABLE mounted (                                                          -- earlier mounts of this state directory (T7)
  epoch INTEGER NOT NULL, writer TEXT NOT NULL,
  seq INTEGER NOT NULL,                            -- journal head when the next one began: its records up to here are in this state
  PRIMARY KEY (epoch, writer)
) STRICT, WITHOUT ROWID;
CREATE TABLE segment (                                                          -- built, not yet confirmed (T2)
  bit INTEGER NOT NULL, n INTEGER NOT NULL,
  epoch INTEGER NOT NULL, writer TEXT NOT NULL,
  body BLOB NOT NULL,
  hash TEXT NOT NULL, seq_max INTEGER NOT NULL, low_water INTEGER NOT NULL,
  PRIMARY KEY (bit, n)
) STRICT, WITHOUT ROWID;
CREATE TABLE checkpoint (                                                       -- exported, or on a target (T3)
  bit INTEGER NOT NULL, seq INTEGER NOT NULL, export TEXT NOT NULL,
  replay_from INTEGER NOT NULL,
  complete INTEGER NOT NULL,
  bytes INTEGER NOT NULL,
  PRIMARY KEY (bit, seq, export)
) STRICT, WITHOUT ROWID;
CREATE TABLE deletion (                                                         -- chunks that are leaving a target (T9): its bit is gone already
  bit INTEGER NOT NULL, chunk_hash BLOB NOT NULL,
  done_secs INTEGER,                               -- when the DELETE was answered, in steady seconds; NULL = not yet
  PRIMARY KEY (bit, chunk_hash)
) STRICT, WITHOUT ROWID;
CREATE TABLE retired (bit INTEGER PRIMARY KEY) STRICT;                          -- of removed targets, until no chunk has the bit any more
CREATE TABLE target_change (                                                    -- what commands changed about the configured targets
  name TEXT PRIMARY KEY,
  uri TEXT,                                        -- as given, without secrets; NULL = the target was removed
  configured TEXT                                  -- what the configuration said for this name then; NULL = nothing
) STRICT, WITHOUT ROWID;
CREATE TABLE seq_time (seq INTEGER PRIMARY KEY, secs INTEGER NOT NULL) STRICT;  -- journal heads and when they were seen, in steady seconds, for the grace period of GC
CREATE TABLE repacked (                                                         -- repacks that an open slot, or a target, has not gone by yet (O5)
  seq INTEGER PRIMARY KEY,                         -- of the record
  from_hash BLOB NOT NULL,
  to_chunk INTEGER NOT NULL,                       -- row of the new chunk
  body BLOB NOT NULL                               -- as in the journal, whose row may be gone
) STRICT;
CREATE INDEX repacked_from ON repacked (from_hash, seq);
CREATE INDEX repacked_to ON repacked (to_chunk);
