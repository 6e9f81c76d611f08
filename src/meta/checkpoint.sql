CREATE TABLE filesystem (key TEXT PRIMARY KEY, value ANY NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE inode (
  ino INTEGER PRIMARY KEY,                         -- 1 = root
  mode INTEGER NOT NULL,                           -- st_mode with type bits
  uid INTEGER NOT NULL, gid INTEGER NOT NULL, rdev INTEGER NOT NULL,   -- rdev as in fuse_attr, 0 if no device
  nlink INTEGER NOT NULL,                          -- derived: names; a directory 2 + its subdirectories
  size INTEGER NOT NULL,                           -- bytes; symlink: length of target; directory 0
  generation INTEGER NOT NULL,                     -- of the newest slot, filled or not
  atime INTEGER NOT NULL, atime_ns INTEGER NOT NULL,
  mtime INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
  ctime INTEGER NOT NULL, ctime_ns INTEGER NOT NULL,
  times_seq INTEGER NOT NULL                       -- directories: seq that set mtime and ctime last; else 0
) STRICT;
CREATE TABLE dirent (parent INTEGER NOT NULL, name BLOB NOT NULL, ino INTEGER NOT NULL, PRIMARY KEY (parent, name)) STRICT, WITHOUT ROWID;
CREATE TABLE symlink (ino INTEGER PRIMARY KEY, target BLOB NOT NULL) STRICT;
CREATE TABLE xattr (ino INTEGER NOT NULL, name BLOB NOT NULL, value BLOB NOT NULL, PRIMARY KEY (ino, name)) STRICT, WITHOUT ROWID;
CREATE TABLE chunk (
  id INTEGER PRIMARY KEY,                          -- ascending in order of first commit, <= chunk_high
  hash BLOB NOT NULL UNIQUE,                       -- 32 bytes
  length INTEGER NOT NULL,                         -- bytes
  dead_seq INTEGER                                 -- journal head + 1 when its last reference went; NULL = referenced
) STRICT;
CREATE TABLE extent (
  ino INTEGER NOT NULL, offset INTEGER NOT NULL,   -- bytes in the file; rows of one inode do not overlap
  length INTEGER NOT NULL,                         -- bytes, > 0, offset + length <= size
  chunk INTEGER NOT NULL, chunk_offset INTEGER NOT NULL,
  PRIMARY KEY (ino, offset)
) STRICT, WITHOUT ROWID;
CREATE TABLE slot (seq INTEGER PRIMARY KEY, ino INTEGER NOT NULL, generation INTEGER NOT NULL) STRICT;   -- open at `seq`
