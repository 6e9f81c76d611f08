#!/usr/bin/env python3
"""Rebuild every file of a TandemFS filesystem from one target, without TandemFS.

    restore.py TARGET_DIR OUTPUT_DIR

TARGET_DIR is a directory target, or a bucket that was downloaded with any tool (the folder with `tandemfs.json` in it).
OUTPUT_DIR must be empty or not exist; nothing is written anywhere else, except for a temporary copy of the metadata.

Needs Python 3.8 or later and the `zstd` command. With `b3sum` or the Python module `blake3` every object is checked
against its hash; without them only lengths and the chain of segments are, and the script says so. Run it as root to get
owners and device nodes back.

How it works, in the order of this file:
 1. Identity   tandemfs.json says whose files these are.
 2. Lineage    writers/ says whose history counts: the writer with the highest epoch, and its parents up to where each
               was succeeded. What others wrote is discarded history.
 3. State      the newest checkpoint of that lineage, with what filled its open slots; without one an empty root.
 4. Replay     the segments after it, as far as their chain holds. Segments up to one with "end": true count as a
               whole or not at all: so the result is a state that a power cut on a local disk could have left.
 5. Files      the tree is written, every file from its extents: runs of bytes that lie in chunks; gaps are holes.

Exit status: 0 everything was restored; 1 nothing could be restored; 2 wrong usage; 4 restored, but not everything (what
is missing was said).
"""

import argparse
import base64
import errno
import json
import os
import re
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
from bisect import bisect_right

FORMAT = 1
ROOT = 1
CHUNK_MAX = 64 << 20
SEGMENT_MAX = 16 << 20          # decompressed; a segment holds at most 4 MiB of lines and a trailer
LINE_MAX = 4 << 20
NUMBER_MAX = 2**53 - 1
U32_MAX = 2**32 - 1
MODE_MAX = 0o177777
HASH = re.compile(r"[0-9a-f]{64}")


class Damaged(Exception):
    """Something on the target is not what it should be."""


def number(value, name="number", low=0, high=NUMBER_MAX):
    """A JSON number that is an integer in range."""
    if type(value) is not int or not low <= value <= high:
        raise Damaged(f"{name} is {value!r}")
    return value


def u32(value):
    return number(value, "owner or device", 0, U32_MAX)


def hash_text(value):
    if not isinstance(value, str) or not HASH.fullmatch(value):
        raise Damaged(f"{value!r} is not a hash")
    return value


# --- What was said and found -----------------------------------------------------------------------------------------


class Report:
    """What went wrong without ending the restore."""

    def __init__(self):
        self.problems = 0
        self.said = {}

    def say(self, text):
        print(text, file=sys.stderr, flush=True)

    def problem(self, text):
        """Something of the filesystem is missing in the result."""
        self.problems += 1
        if self.problems <= 1000:
            self.say(f"PROBLEM: {text}")

    def once(self, key, text):
        """The same loss for many files: said once, counted."""
        self.said[key] = self.said.get(key, 0) + 1
        if self.said[key] == 1:
            self.problem(text)


report = Report()


# --- Tools: zstd and BLAKE3 ------------------------------------------------------------------------------------------


def decompress(data, limit):
    """The decompressed bytes, or Damaged. Never more than `limit`, whatever the input claims."""
    with tempfile.TemporaryFile() as stored:
        stored.write(data)
        stored.seek(0)
        zstd = subprocess.Popen(["zstd", "-dcq"], stdin=stored, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        plain = zstd.stdout.read(limit + 1)
        if len(plain) > limit:
            zstd.kill()
            zstd.communicate()
            raise Damaged(f"decompresses to more than {limit} bytes")
        _, errors = zstd.communicate()
        if zstd.returncode != 0:
            raise Damaged(f"zstd: {errors.decode(errors='replace').strip()}")
    return plain


class Blake3:
    """Hashes with whatever is there: the Python module, the command, or nothing."""

    def __init__(self):
        self.unverified = 0
        try:
            import blake3

            self.module = blake3.blake3
        except ImportError:
            self.module = None
        self.command = None if self.module else shutil.which("b3sum")
        self.available = bool(self.module or self.command)

    def of(self, data):
        """The hash of some bytes, or None."""
        if self.module:
            return self.module(data).hexdigest()
        if self.command:
            done = subprocess.run([self.command, "--no-names"], input=data, stdout=subprocess.PIPE, check=True)
            return done.stdout.decode().strip()
        self.unverified += 1
        return None

    def of_files(self, paths):
        """The hashes of files that exist, or Nones."""
        if self.module:
            hashes = []
            for path in paths:
                with open(path, "rb") as file:
                    hashes.append(self.module(file.read()).hexdigest())
            return hashes
        if self.command:
            done = subprocess.run([self.command, "--no-names", "--", *paths], stdout=subprocess.PIPE, check=True)
            return done.stdout.decode().split()
        self.unverified += len(paths)
        return [None] * len(paths)


blake3 = Blake3()


# --- 1. Identity -----------------------------------------------------------------------------------------------------


def read_object(target, key, limit):
    with open(os.path.join(target, key), "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise Damaged(f"{key}: longer than {limit} bytes")
    return data


def parse_json(data):
    try:
        document = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise Damaged(f"not JSON: {error}") from None
    if not isinstance(document, dict):
        raise Damaged("not a JSON object")
    return document


def read_document(target, key, limit=2 << 20):
    try:
        document = parse_json(read_object(target, key, limit))
        if document.get("format") != FORMAT:
            raise Damaged(f"format {document.get('format')!r}; this script knows format {FORMAT}")
        return document
    except Damaged as error:
        raise Damaged(f"{key}: {error}") from None


def read_identity(target):
    try:
        identity = read_document(target, "tandemfs.json")
    except OSError as error:
        raise Damaged(f"this is no target, it has no tandemfs.json: {error}") from None
    if identity.get("kind") != "tandemfs":
        raise Damaged("tandemfs.json: not of a TandemFS target")
    for key, known in (("layout", "chunks"), ("codec", "none")):
        if identity.get(key) != known:
            raise Damaged(f"tandemfs.json: {key} is {identity.get(key)!r}; this script knows only {known!r}")
    return identity


def is_ours(document, identity):
    """Objects of another filesystem or target, copied here by mistake, are never mixed in."""
    return all(document.get(key) == identity[key] for key in ("filesystem", "target"))


# --- 2. Lineage ------------------------------------------------------------------------------------------------------


def listing(target, folder):
    try:
        return sorted(os.listdir(os.path.join(target, folder)))
    except FileNotFoundError:
        return []


def read_lineage(target, identity, chosen):
    """The writers whose history counts, newest first: [(epoch, id, first segment, last segment or None, last seq or
    None, hash before the first segment)]."""
    writers = {}
    for name in listing(target, "writers"):
        match = re.fullmatch(r"(\d{10})-([0-9a-f]{8})\.json", name)
        if not match:
            continue
        document = read_document(target, f"writers/{name}")
        if not is_ours(document, identity):
            raise Damaged(f"writers/{name}: belongs to another filesystem or target")
        writers[int(match[1]), match[2]] = document
    if not writers:
        raise Damaged("writers/ is empty: nothing was ever written here")
    if chosen:
        current = next((key for key in writers if f"{key[0]}-{key[1]}" == chosen), None)
        if not current:
            raise Damaged(f"no writer {chosen}; there are {', '.join(f'{e}-{w}' for e, w in sorted(writers))}")
    else:
        highest = max(epoch for epoch, _ in writers)
        candidates = sorted(key for key in writers if key[0] == highest)
        if len(candidates) > 1:
            lines = [
                f"  --writer {epoch}-{writer}   {writers[epoch, writer].get('host')}, "
                f"since {writers[epoch, writer].get('started')}"
                for epoch, writer in candidates
            ]
            raise Damaged("two machines wrote here at the same time; choose whose history counts:\n" + "\n".join(lines))
        current = candidates[0]
    lineage = []
    last, last_seq = None, None
    while True:
        parent = writers[current].get("parent")
        if parent is None:
            lineage.append((*current, 1, last, last_seq, ""))
            return lineage
        n = number(parent["n"], "parent.n", 1)
        if last is not None and n > last:
            raise Damaged(f"writers/: {current} starts after its own end")
        lineage.append((*current, n + 1, last, last_seq, hash_text(parent["hash"])))
        before = (number(parent["epoch"], "parent.epoch"), parent["writer"])
        if before >= current or before[0] >= current[0]:
            raise Damaged(f"writers/: {current} has a parent that is not older: {before}")
        last, last_seq = n, min(number(parent["seq"], "parent.seq"), NUMBER_MAX if last_seq is None else last_seq)
        if before not in writers:
            report.say(f"note: the announcement of writer {before[0]}-{before[1]} is gone, its segments count")
            lineage.append((*before, 1, last, last_seq, None))
            return lineage
        current = before


# --- 3. State --------------------------------------------------------------------------------------------------------


class Inode:
    __slots__ = ("mode", "uid", "gid", "rdev", "size", "atime", "mtime", "ctime", "times_seq", "names", "symlink",
                 "xattrs", "extents", "entries")

    def __init__(self, mode, uid, gid, time, rdev=0):
        self.mode, self.uid, self.gid, self.rdev = mode, uid, gid, rdev
        self.size = 0
        self.atime = self.mtime = self.ctime = time
        self.times_seq = 0
        self.names = 0
        self.symlink = None
        self.xattrs = {}
        self.extents = []       # (offset, length, hash of the chunk, offset in it), ascending, disjoint
        self.entries = {} if stat.S_ISDIR(mode) else None


class State:
    """The filesystem at one point of its history."""

    def __init__(self):
        self.inodes = {ROOT: Inode(stat.S_IFDIR | 0o755, 0, 0, (0, 0))}
        self.chunks = {}        # hash -> length
        self.users = {}         # hash -> inodes that refer to it, or did: for repack

    def inode(self, ino):
        try:
            return self.inodes[ino]
        except KeyError:
            raise Damaged(f"inode {ino} does not exist") from None

    def directory(self, ino):
        directory = self.inode(ino)
        if directory.entries is None:
            raise Damaged(f"inode {ino} is not a directory")
        return directory

    def chunk(self, name, length):
        hash_text(name)
        if self.chunks.setdefault(name, number(length, "length of a chunk", 1, CHUNK_MAX)) != length:
            raise Damaged(f"chunk {name} has two lengths")

    def enter(self, parent, name, ino):
        directory = self.directory(parent)
        if name in directory.entries:
            raise Damaged(f"name {name!r} in directory {parent} is taken")
        directory.entries[name] = ino
        self.inode(ino).names += 1

    def leave(self, parent, name, ino):
        directory = self.directory(parent)
        if directory.entries.get(name) != ino:
            raise Damaged(f"name {name!r} in directory {parent} is not inode {ino}")
        del directory.entries[name]
        inode = self.inode(ino)
        inode.names -= 1
        return inode

    def remove(self, parent, name, ino):
        """Takes a name away; what has no name left is gone."""
        inode = self.leave(parent, name, ino)
        if inode.entries:
            raise Damaged(f"directory {ino} goes but is not empty")
        if inode.names == 0:
            del self.inodes[ino]

    def touch(self, ino, time, seq):
        """The times of a directory belong to the highest seq that set them."""
        directory = self.directory(ino)
        if seq >= directory.times_seq:
            directory.mtime = directory.ctime = time
            directory.times_seq = seq

    def is_within(self, ino, ancestor):
        """True if directory `ino` is `ancestor` or lies below it."""
        below, found = [ancestor], set()
        while below:
            current = below.pop()
            if current == ino:
                return True
            if current not in found:
                found.add(current)
                entries = self.inode(current).entries or {}
                below.extend(child for child in entries.values() if self.inode(child).entries is not None)
        return False

    def replace(self, ino, whole, extents, holes, size):
        """New content: `extents` and `holes` replace what lies there, what lies at or beyond `size` goes."""
        inode = self.inode(ino)
        old = [] if whole else punched(inode.extents, sorted([(e[0], e[1]) for e in extents] + holes))
        inode.extents = clipped(sorted(old + extents), size)
        for extent in extents:
            self.users.setdefault(extent[2], set()).add(ino)


def punched(extents, ranges):
    """The extents without the ranges; both ascending and disjoint."""
    left = []
    at = 0
    for offset, length, chunk, chunk_offset in extents:
        end = offset + length
        while at < len(ranges) and ranges[at][0] + ranges[at][1] <= offset:
            at += 1
        i = at
        while offset < end and i < len(ranges) and ranges[i][0] < end:
            start, stop = ranges[i][0], ranges[i][0] + ranges[i][1]
            if start > offset:
                left.append((offset, start - offset, chunk, chunk_offset))
            if stop > offset:
                chunk_offset += stop - offset
                offset = stop
            i += 1
        if offset < end:
            left.append((offset, end - offset, chunk, chunk_offset))
    return left


def clipped(extents, size):
    return [(o, min(length, size - o), chunk, at) for o, length, chunk, at in extents if o < size]


class Database:
    """Rows of the checkpoint's SQLite file. Read with Python's own library, or, where that is too old for STRICT tables
    (before 3.37), with the `sqlite3` command. Blobs are asked for as 'x' and hex digits, so that the command's text can
    tell them from numbers."""

    def __init__(self, path):
        self.path = path
        self.command = None
        if sqlite3.sqlite_version_info < (3, 37):
            self.command = shutil.which("sqlite3")
            if not self.command:
                raise Damaged(f"Python's SQLite is {sqlite3.sqlite_version}, too old to read the checkpoint: it needs "
                              "3.37; install the sqlite3 command, 3.37 or later, or use a newer Python")
            report.say(f"note: Python's SQLite is {sqlite3.sqlite_version}; reading with {self.command} instead")
        else:
            self.connection = sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)
            self.connection.execute("PRAGMA trusted_schema=OFF")
            self.connection.execute("PRAGMA cell_size_check=ON")

    def rows(self, query):
        if not self.command:
            yield from self.connection.execute(query)
            return
        run = [self.command, "-readonly", "-batch", "-list", "-separator", "|", "-noheader", self.path, query]
        process = subprocess.Popen(run, stdout=subprocess.PIPE, text=True)
        for line in process.stdout:
            yield tuple(int(v) if re.fullmatch(r"-?\d+", v) else v for v in line.rstrip("\n").split("|"))
        if process.wait() != 0:
            raise Damaged("the sqlite3 command could not read meta.sqlite (is it 3.37 or later?)")


TABLES = {
    "filesystem": ["key", "value"],
    "inode": ["ino", "mode", "uid", "gid", "rdev", "nlink", "size", "generation", "atime", "atime_ns", "mtime",
              "mtime_ns", "ctime", "ctime_ns", "times_seq"],
    "dirent": ["parent", "name", "ino"],
    "symlink": ["ino", "target"],
    "xattr": ["ino", "name", "value"],
    "chunk": ["id", "hash", "length", "dead_seq"],
    "extent": ["ino", "offset", "length", "chunk", "chunk_offset"],
    "slot": ["seq", "ino", "generation"],
}


def blob(value):
    return bytes.fromhex(value[1:])


def check_symlink(target):
    if not 1 <= len(target) <= 4095 or b"\0" in target:
        raise Damaged(f"a symbolic link to {len(target)} bytes")
    return target


def check_xattr(name, value):
    if not 1 <= len(name) <= 255 or b"\0" in name or len(value) > 65536:
        raise Damaged(f"an extended attribute of {len(name)} and {len(value)} bytes")
    return name, value


def check_name(name):
    if not 1 <= len(name) <= 255 or name in (b".", b"..") or b"/" in name or b"\0" in name:
        raise Damaged(f"{name!r} is not a name")
    return name


def load_database(path):
    """The state in a checkpoint, and its open slots [(seq, ino)]."""
    database = Database(path)
    query = "SELECT name, type FROM sqlite_master WHERE name NOT LIKE 'sqlite_autoindex_%'"
    found = dict(database.rows(query))
    if found != {name: "table" for name in TABLES}:
        raise Damaged(f"meta.sqlite: holds something else than the tables of format 1: {sorted(found)}")
    state = State()
    state.inodes.clear()
    query = ("SELECT ino, mode, uid, gid, rdev, size, atime, atime_ns, mtime, mtime_ns, ctime, ctime_ns, times_seq "
             "FROM inode ORDER BY ino")
    for row in database.rows(query):
        ino, mode, uid, gid, rdev, size, atime, atime_ns, mtime, mtime_ns, ctime, ctime_ns, times_seq = row
        inode = Inode(number(mode, "mode", 0, MODE_MAX), u32(uid), u32(gid), time_of((atime, atime_ns)), u32(rdev))
        inode.size = number(size, "size")
        inode.mtime, inode.ctime = time_of((mtime, mtime_ns)), time_of((ctime, ctime_ns))
        inode.times_seq = times_seq
        state.inodes[number(ino, "ino", 1)] = inode
    state.directory(ROOT)
    for parent, name, ino in database.rows("SELECT parent, 'x' || hex(name), ino FROM dirent"):
        state.enter(parent, check_name(blob(name)), ino)
    for ino, target in database.rows("SELECT ino, 'x' || hex(target) FROM symlink"):
        state.inode(ino).symlink = check_symlink(blob(target))
    for ino, name, value in database.rows("SELECT ino, 'x' || hex(name), 'x' || hex(value) FROM xattr"):
        name, value = check_xattr(blob(name), blob(value))
        state.inode(ino).xattrs[name] = value
    names = {}
    for chunk, name, length in database.rows("SELECT id, 'x' || hex(hash), length FROM chunk"):
        names[chunk] = blob(name).hex()
        state.chunk(names[chunk], length)
    for ino, offset, length, chunk, chunk_offset in database.rows(
        "SELECT ino, offset, length, chunk, chunk_offset FROM extent ORDER BY ino, offset"
    ):
        extents = state.inode(ino).extents
        name = names.get(chunk)
        end = extents[-1][0] + extents[-1][1] if extents else 0
        if name is None or offset < end or length < 1 or chunk_offset < 0 or chunk_offset + length > state.chunks[name]:
            raise Damaged(f"meta.sqlite: extent of inode {ino} at {offset}")
        extents.append((offset, length, name, chunk_offset))
        state.users.setdefault(name, set()).add(ino)
    return state, sorted(database.rows("SELECT seq, ino FROM slot"))


def apply_slots(state, lines, slots):
    """What filled the slots that were open in the snapshot: extents only, clipped to the size that the snapshot has."""
    inode_of = dict(slots)
    newest = {ino: seq for seq, ino in slots}
    records = [parse_json(line) for line in lines]
    for record in records:
        seq, kind = number(record.get("seq"), "seq", 1), record.get("t")
        if inode_of.get(seq) != record.get("ino") or kind not in ("content", "void"):
            raise Damaged(f"slots.jsonl: record {seq} fills no slot of the snapshot")
        # The snapshot has the size of the newest slot. If just that one was lost, the size before it is the right one,
        # and must be known before anything is clipped.
        if kind == "void" and record["why"] == "lost" and newest[record["ino"]] == seq:
            state.inode(record["ino"]).size = number(record["size"], "size")
    unfilled = inode_of.keys() - {record["seq"] for record in records}
    if unfilled:
        raise Damaged(f"slots.jsonl: nothing fills slot {min(unfilled)}")
    for record in records:
        if record["t"] == "content":
            extents, holes = content_of(state, record)
            size = min(number(record["size"], "size"), state.inode(record["ino"]).size)
            state.replace(record["ino"], record["whole"], extents, holes, size)
    for ino in newest:
        inode = state.inode(ino)
        inode.extents = clipped(inode.extents, inode.size)


def load_checkpoint(target, key, complete):
    """The state of one checkpoint, its slots applied."""
    parts = complete["parts"]
    limit = number(complete["sqlite_bytes"], "sqlite_bytes")
    with tempfile.TemporaryDirectory(prefix="tandemfs-restore-") as temporary:
        path = os.path.join(temporary, "meta.sqlite")
        with open(path, "wb") as out:
            zstd = subprocess.Popen(["zstd", "-dcq"], stdin=subprocess.PIPE, stdout=out, stderr=subprocess.PIPE)
            try:
                for index, part in enumerate(parts):
                    if part["name"] != f"meta.sqlite.zst.{index:04}":
                        raise Damaged(f"complete.json: part {part['name']!r} out of order")
                    zstd.stdin.write(checked_part(target, key, part))
                    if os.fstat(out.fileno()).st_size > limit:
                        raise Damaged(f"meta.sqlite: longer than its {limit} bytes")
                zstd.stdin.close()
            except BrokenPipeError:
                pass
            except Damaged:
                zstd.kill()
                raise
            errors = zstd.stderr.read()
            zstd.stderr.close()
            if zstd.wait() != 0:
                raise Damaged(f"meta.sqlite: zstd: {errors.decode(errors='replace').strip()}")
        if os.path.getsize(path) != limit:
            raise Damaged(f"meta.sqlite: {os.path.getsize(path)} bytes instead of {limit}")
        try:
            state, slots = load_database(path)
        except sqlite3.Error as error:
            raise Damaged(f"meta.sqlite: {error}") from None
    part = complete["slots"]
    if part["name"] != "slots.jsonl.zst":
        raise Damaged("complete.json: slots are elsewhere")
    count = number(part["count"], "count")
    plain = decompress(checked_part(target, key, part), max(count, 1) * LINE_MAX)
    lines = plain.split(b"\n")
    if lines.pop() or len(lines) != count:
        raise Damaged("slots.jsonl: more or fewer lines than complete.json says")
    apply_slots(state, lines, slots)
    return state


def checked_part(target, key, part):
    data = read_object(target, f"{key}/{part['name']}", CHUNK_MAX)
    if len(data) != part["bytes"] or blake3.of(data) not in (None, part["blake3"]):
        raise Damaged(f"{key}/{part['name']}: not the bytes that complete.json names")
    return data


def newest_state(target, identity, lineage):
    """(state, its seq, the first segment to replay). Falls back to an older checkpoint if the newest is damaged."""
    limits = {(epoch, writer): seq for epoch, writer, _, _, seq, _ in lineage}
    checkpoints = []
    for name in listing(target, "checkpoints"):
        match = re.fullmatch(r"(\d{16})-([0-9a-f]{8})", name)
        key = f"checkpoints/{name}"
        if not match or not os.path.exists(os.path.join(target, key, "complete.json")):
            continue
        try:
            complete = read_document(target, f"{key}/complete.json")
            if not is_ours(complete, identity) or complete["seq"] != int(match[1]):
                raise Damaged(f"{key}/complete.json: belongs elsewhere")
            writer = complete["epoch"], complete["writer"]
            if writer not in limits or limits[writer] is not None and complete["seq"] > limits[writer]:
                report.say(f"note: {key} is discarded history")
                continue
            checkpoints.append((complete["seq"], key, complete))
        except (Damaged, OSError, KeyError, TypeError) as error:
            report.problem(f"checkpoint {key} is left out: {error}")
    for seq, key, complete in sorted(checkpoints, key=lambda item: item[:2], reverse=True):
        report.say(f"checkpoint {key}: {complete.get('inodes')} inodes up to change {seq}")
        try:
            return load_checkpoint(target, key, complete), seq, number(complete["replay_from"], "replay_from", 1)
        except (Damaged, OSError, KeyError, TypeError, ValueError) as error:
            report.problem(f"checkpoint {key} is damaged, trying an older one: {error}")
    return State(), 0, 1


# --- 4. Replay -------------------------------------------------------------------------------------------------------


def bytes_of(value):
    """A byte string: a JSON string, or {"b64": …} where the bytes are not UTF-8."""
    if isinstance(value, str):
        try:
            return value.encode("utf-8")
        except UnicodeEncodeError:
            raise Damaged(f"{value!r} is not UTF-8") from None
    if isinstance(value, dict) and list(value) == ["b64"] and isinstance(value["b64"], str):
        try:
            return base64.b64decode(value["b64"], validate=True)
        except ValueError:
            pass
    raise Damaged(f"{value!r} is not a byte string")


def name_of(value):
    return check_name(bytes_of(value))


def time_of(value):
    secs, nanos = value
    return number(secs, "seconds", -NUMBER_MAX), number(nanos, "nanoseconds", 0, 999_999_999)


def content_of(state, record):
    """The extents [(offset, length, hash, offset in the chunk)] and holes [(offset, length)] of a content."""
    chunks = [(chunk[0], chunk[1]) for chunk in record["chunks"]]
    for name, length in chunks:
        state.chunk(name, length)
    size = number(record["size"], "size")
    extents, end = [], 0
    for offset, length, index, chunk_offset in record["extents"]:
        for value in (offset, length, index, chunk_offset):
            number(value)
        if offset < end or length < 1 or offset + length > size or index >= len(chunks) \
                or chunk_offset + length > chunks[index][1]:
            raise Damaged(f"record {record['seq']}: extent at {offset}")
        end = offset + length
        extents.append((offset, length, chunks[index][0], chunk_offset))
    holes = [(number(offset), number(length, "length", 1)) for offset, length in record.get("zero", [])]
    return extents, holes


def set_mode(inode, mode):
    if mode is not None:
        inode.mode = stat.S_IFMT(inode.mode) | number(mode, "mode", 0, MODE_MAX) & 0o7777


def apply(state, record):
    """Does what one record says. A content that was split into parts is several records, each applied by itself."""
    kind, seq = record["t"], record["seq"]
    time = time_of(record["time"]) if "time" in record else None
    ino = record.get("ino")
    if kind in ("mkdir", "create", "symlink"):
        mode = stat.S_IFLNK | 0o777 if kind == "symlink" else number(record["mode"], "mode", 0, MODE_MAX)
        if kind != "symlink" and (kind == "mkdir") != stat.S_ISDIR(mode) or number(ino, "ino", 2) in state.inodes:
            raise Damaged(f"record {seq}: inode {ino} cannot be born with mode {mode:o}")
        inode = Inode(mode, u32(record["uid"]), u32(record["gid"]), time, u32(record.get("rdev", 0)))
        inode.times_seq = seq if kind == "mkdir" else 0
        inode.xattrs = dict(check_xattr(bytes_of(name), bytes_of(value)) for name, value in record.get("xattrs", []))
        if kind == "symlink":
            inode.symlink = check_symlink(bytes_of(record["target"]))
        state.inodes[ino] = inode
        state.enter(record["parent"], name_of(record["name"]), ino)
        state.touch(record["parent"], time, seq)
    elif kind == "content":
        inode = state.inode(ino)
        extents, holes = content_of(state, record)
        state.replace(ino, record["whole"], extents, holes, record["size"])
        inode.size = record["size"]
        inode.mtime, inode.ctime = time_of(record["mtime"]), time_of(record["ctime"])
        set_mode(inode, record.get("mode"))
    elif kind == "void":
        if record["why"] == "lost":
            inode = state.inode(ino)
            inode.size = number(record["size"], "size")
            inode.extents = clipped(inode.extents, inode.size)
            inode.mtime, inode.ctime = time_of(record["mtime"]), time_of(record["ctime"])
    elif kind == "link":
        if state.inode(ino).entries is not None:
            raise Damaged(f"record {seq}: a second name for a directory")
        state.enter(record["parent"], name_of(record["name"]), ino)
        state.inode(ino).ctime = time
        state.touch(record["parent"], time, seq)
    elif kind in ("unlink", "rmdir"):
        if (kind == "rmdir") != (state.inode(ino).entries is not None):
            raise Damaged(f"record {seq}: {kind} of the other kind of file")
        state.remove(record["parent"], name_of(record["name"]), ino)
        state.touch(record["parent"], time, seq)
    elif kind == "rename":
        (parent, name), (new_parent, new_name) = record["from"], record["to"]
        if state.inode(ino).entries is not None and parent != new_parent and state.is_within(new_parent, ino):
            raise Damaged(f"record {seq}: a directory moves into itself")
        state.leave(parent, name_of(name), ino)
        if record["replaced"] is not None:
            state.remove(new_parent, name_of(new_name), record["replaced"])
        state.enter(new_parent, name_of(new_name), ino)
        state.inode(ino).ctime = time
        state.touch(parent, time, seq)
        state.touch(new_parent, time, seq)
    elif kind == "exchange":
        (a_parent, a_name, a), (b_parent, b_name, b) = record["a"], record["b"]
        for moved, into in ((a, b_parent), (b, a_parent)):
            if state.inode(moved).entries is not None and a_parent != b_parent and state.is_within(into, moved):
                raise Damaged(f"record {seq}: a directory moves into itself")
        state.leave(a_parent, name_of(a_name), a)
        state.leave(b_parent, name_of(b_name), b)
        state.enter(a_parent, name_of(a_name), b)
        state.enter(b_parent, name_of(b_name), a)
        state.inode(a).ctime = state.inode(b).ctime = time
        state.touch(a_parent, time, seq)
        state.touch(b_parent, time, seq)
    elif kind == "setattr":
        inode = state.inode(ino)
        set_mode(inode, record.get("mode"))
        inode.uid = u32(record.get("uid", inode.uid))
        inode.gid = u32(record.get("gid", inode.gid))
        if "atime" in record:
            inode.atime = time_of(record["atime"])
        if inode.entries is None or seq >= inode.times_seq:
            inode.ctime = time_of(record["ctime"])
            if "mtime" in record:
                inode.mtime = time_of(record["mtime"])
                inode.times_seq = seq
    elif kind == "setxattr":
        name, value = check_xattr(bytes_of(record["name"]), bytes_of(record["value"]))
        state.inode(ino).xattrs[name] = value
        set_mode(state.inode(ino), record.get("mode"))
    elif kind == "removexattr":
        state.inode(ino).xattrs.pop(bytes_of(record["name"]), None)
    elif kind == "repack":
        repack(state, record)
    else:
        raise Damaged(f"record {seq}: type {kind!r} is not known to this script")


def repack(state, record):
    """What lay in chunk `from` lies elsewhere now. Extents are cut at the borders of moves."""
    old = hash_text(record["from"])
    chunks = [(chunk[0], chunk[1]) for chunk in record["chunks"]]
    for name, length in chunks:
        state.chunk(name, length)
    moves = []
    for at, length, index, chunk_offset in record["moves"]:
        if number(chunk_offset) + number(length, "length", 1) > chunks[number(index, "index", 0, len(chunks) - 1)][1]:
            raise Damaged(f"record {record['seq']}: move at {at}")
        moves.append((number(at), length, chunks[index][0], chunk_offset))
    starts = [move[0] for move in moves]
    if starts != sorted(set(starts)):
        raise Damaged(f"record {record['seq']}: moves out of order")
    for ino in state.users.get(old, set()):
        inode = state.inodes.get(ino)
        if inode is None:
            continue
        extents = []
        for offset, length, chunk, at in inode.extents:
            if chunk != old:
                extents.append((offset, length, chunk, at))
                continue
            end = at + length
            while at < end:
                i = bisect_right(starts, at) - 1
                if i >= 0 and at < moves[i][0] + moves[i][1]:
                    stop = min(end, moves[i][0] + moves[i][1])
                    extents.append((offset, stop - at, moves[i][2], moves[i][3] + at - moves[i][0]))
                    state.users.setdefault(moves[i][2], set()).add(ino)
                else:
                    stop = min(end, starts[i + 1]) if i + 1 < len(starts) else end
                    extents.append((offset, stop - at, chunk, at))
                offset += stop - at
                at = stop
        inode.extents = extents


def read_segment(target, identity, epoch, writer, n, expected_prev):
    """The records and the trailer of one segment, if it is what belongs here."""
    key = f"journal/{epoch:010}-{writer}/{n:012}.jsonl.zst"
    try:
        plain = decompress(read_object(target, key, SEGMENT_MAX), SEGMENT_MAX)
        lines = plain.split(b"\n")
        if len(lines) < 2 or lines.pop():
            raise Damaged("its last line is not complete")
        trailer = parse_json(lines.pop())
        if trailer.get("t") != "trailer":
            raise Damaged("it has no trailer")
        if trailer.get("format") != FORMAT:
            raise Damaged(f"format {trailer.get('format')!r}; this script knows format {FORMAT}")
        tail = b',"hash":"' + hash_text(trailer.get("hash")).encode() + b'"}\n'
        if not plain.endswith(tail):
            raise Damaged("hash is not the last key of its trailer")
        if blake3.of(plain[: -len(tail)]) not in (None, trailer["hash"]):
            raise Damaged("its hash is wrong: some bytes are not what was written")
        if not is_ours(trailer, identity) or (trailer["epoch"], trailer["writer"], trailer["n"]) != (epoch, writer, n):
            raise Damaged("it belongs elsewhere")
        if expected_prev is not None and trailer["prev"] != expected_prev:
            raise Damaged("it does not follow the segment before it")
        records = [parse_json(line) for line in lines]
        seqs = [number(record.get("seq"), "seq", 1) for record in records]
        counted = [len(records), min(seqs, default=0), max(seqs, default=0)]
        if [trailer["count"], trailer["seq_min"], trailer["seq_max"]] != counted:
            raise Damaged("its trailer counts something else")
        return records, trailer
    except (Damaged, KeyError, TypeError) as error:
        raise Damaged(f"{key}: {error!r}" if isinstance(error, (KeyError, TypeError)) else f"{key}: {error}") from None


def replay(target, identity, lineage, state, after, replay_from):
    """Applies what the segments hold beyond `after`. Returns the highest change applied."""
    found, start_hash = {}, {1: ""}
    for epoch, writer, first, last, _, prev in reversed(lineage):
        start_hash[first] = prev
        for name in listing(target, f"journal/{epoch:010}-{writer}"):
            match = re.fullmatch(r"(\d{12})\.jsonl\.zst", name)
            if match and int(match[1]) >= first and (last is None or int(match[1]) <= last):
                found[int(match[1])] = (epoch, writer)
    n, prev, head, run = replay_from, None, after, []
    newest = max(found, default=0)
    while n in found:
        expected = prev if prev is not None else start_hash.get(n)
        try:
            records, trailer = read_segment(target, identity, *found[n], n, expected)
        except (Damaged, OSError) as error:
            report.problem(f"the history ends before segment {n} of {newest}: {error}")
            return head
        prev = trailer["hash"]
        run += [record for record in records if record["seq"] > after]
        if trailer["end"] is True:
            for record in run:
                try:
                    apply(state, record)
                except (Damaged, KeyError, TypeError, ValueError) as error:
                    # The state is now in the middle of a unit: better said than hidden.
                    report.problem(f"the history ends at change {record.get('seq')}, which contradicts it: {error!r}")
                    return head
                head = max(head, record["seq"])
            run = []
        n += 1
    if newest >= n:
        report.problem(f"segment {n} is missing: {newest - n + 1} later segments could not be applied")
    elif run:
        report.say(f"note: the last {len(run)} changes are the start of a unit that never arrived whole: left out")
    return head


# --- 5. Files --------------------------------------------------------------------------------------------------------


def chunk_path(target, name):
    return os.path.join(target, "chunks", name[:2], name)


def bad_chunks(target, state):
    """Chunks that files need and that are not there as they were: {hash: why}. Every chunk is looked at once."""
    needed = sorted({extent[2] for inode in state.inodes.values() for extent in inode.extents})
    bad, sound = {}, []
    for name in needed:
        try:
            length = os.stat(chunk_path(target, name)).st_size
        except OSError as error:
            bad[name] = os.strerror(error.errno)
            continue
        if length != state.chunks[name]:
            bad[name] = f"{length} bytes instead of {state.chunks[name]}"
        else:
            sound.append(name)
    if not blake3.available:
        blake3.unverified += len(sound)
        return bad
    for start in range(0, len(sound), 256):
        batch = sound[start:start + 256]
        for name, found in zip(batch, blake3.of_files([chunk_path(target, name) for name in batch])):
            if found != name:
                bad[name] = "its bytes are not those that its name says"
        if start and start % 8192 == 0:
            report.say(f"checked {start} of {len(sound)} chunks")
    return bad


class Tree:
    """Writes the tree below one directory. Everything goes through descriptors of directories made here, and no
    symbolic link is ever followed, so nothing is written elsewhere whatever the metadata says."""

    def __init__(self, target, state, output, bad, keep_damaged):
        self.target, self.state, self.bad, self.keep_damaged = target, state, bad, keep_damaged
        self.root = os.open(output, os.O_RDONLY | os.O_DIRECTORY)
        self.is_root = os.geteuid() == 0
        self.first_path = {}    # inode with several names -> path of the first, from the output directory
        self.files = self.bytes = 0

    def write(self):
        # Depth first with a stack of its own: a deep tree is no reason to fail.
        stack = [(ROOT, b"", self.root, iter(sorted(self.state.inodes[ROOT].entries.items())))]
        seen = {ROOT}
        while stack:
            ino, path, descriptor, entries = stack[-1]
            try:
                name, child = next(entries)
            except StopIteration:
                stack.pop()
                self.finish(self.state.inodes[ino], descriptor, path)
                if descriptor != self.root:
                    os.close(descriptor)
                continue
            inode = self.state.inode(child)
            child_path = path + b"/" + name if path else name
            try:
                if inode.entries is None:
                    self.write_file(child, inode, name, descriptor, child_path)
                elif child in seen:
                    report.problem(f"{show(child_path)}: a directory with two names")
                else:
                    seen.add(child)
                    os.mkdir(name, 0o700, dir_fd=descriptor)
                    inside = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=descriptor)
                    stack.append((child, child_path, inside, iter(sorted(inode.entries.items()))))
            except OSError as error:
                report.problem(f"{show(child_path)}: {error.strerror or error}")
                if error.errno == errno.ENOSPC:
                    raise Damaged("the disk is full") from None
        lost = sum(1 for ino, inode in self.state.inodes.items() if inode.entries is not None and ino not in seen)
        if lost:
            report.problem(f"{lost} directories cannot be reached from the root")

    def write_file(self, ino, inode, name, directory, path):
        if ino in self.first_path:
            os.link(self.first_path[ino], name, src_dir_fd=self.root, dst_dir_fd=directory, follow_symlinks=False)
            return
        kind = stat.S_IFMT(inode.mode)
        if kind == stat.S_IFREG:
            damaged = sorted({extent[2] for extent in inode.extents} & self.bad.keys())
            if damaged:
                kept = "kept with holes" if self.keep_damaged else "left out"
                report.problem(f"{show(path)}: {kept}, chunk {damaged[0]}: {self.bad[damaged[0]]}")
                if not self.keep_damaged:
                    return
            descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=directory)
            try:
                self.fill(inode, descriptor)
                self.finish(inode, descriptor, path)
            finally:
                os.close(descriptor)
        elif kind == stat.S_IFLNK:
            os.symlink(inode.symlink or b"", name, dir_fd=directory)
            self.finish_at(inode, name, directory, path)
        elif kind in (stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK):
            if kind in (stat.S_IFCHR, stat.S_IFBLK) and not self.is_root:
                report.once("device", f"{show(path)} and other device nodes can only be made by root")
                return
            # As the kernel encodes it for FUSE: 12 bits of major, 20 of minor.
            device = os.makedev(inode.rdev >> 8 & 0xFFF, inode.rdev & 0xFF | inode.rdev >> 12 & 0xFFF00)
            os.mknod(name, kind | 0o600, device if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0, dir_fd=directory)
            self.finish_at(inode, name, directory, path)
        else:
            report.problem(f"{show(path)}: mode {inode.mode:o} is of no file")
            return
        self.files += 1
        if inode.names > 1:
            self.first_path[ino] = path

    def fill(self, inode, descriptor):
        for offset, length, chunk, chunk_offset in inode.extents:
            if chunk in self.bad:
                continue
            with open(chunk_path(self.target, chunk), "rb", buffering=0) as source:
                done = 0
                while done < length:
                    data = os.pread(source.fileno(), min(length - done, 4 << 20), chunk_offset + done)
                    if not data:
                        raise OSError(errno.EIO, f"chunk {chunk} became shorter")
                    view = memoryview(data)
                    while view:
                        written = os.pwrite(descriptor, view, offset + done)
                        done += written
                        view = view[written:]
            self.bytes += length
        os.ftruncate(descriptor, inode.size)

    def finish(self, inode, descriptor, path):
        """Owner, mode, attributes and times of an open file or directory; in this order, since each would undo the one
        after it."""
        self.own(inode, path, lambda uid, gid: os.fchown(descriptor, uid, gid))
        os.fchmod(descriptor, stat.S_IMODE(inode.mode))
        self.set_xattrs(inode, path, descriptor, True)
        self.set_times(inode, path, lambda times: os.utime(descriptor, ns=times))

    def finish_at(self, inode, name, directory, path):
        """The same for what cannot be opened: by name in a directory, never following it."""
        self.own(inode, path, lambda uid, gid: os.chown(name, uid, gid, dir_fd=directory, follow_symlinks=False))
        if not stat.S_ISLNK(inode.mode):
            # Made a moment ago by this process, so it is no symbolic link; chmod cannot be told not to follow one.
            os.chmod(name, stat.S_IMODE(inode.mode), dir_fd=directory)
        self.set_xattrs(inode, path, b"/proc/self/fd/%d/%s" % (directory, name), False)
        self.set_times(inode, path, lambda times: os.utime(name, ns=times, dir_fd=directory, follow_symlinks=False))

    def own(self, inode, path, chown):
        if self.is_root:
            chown(inode.uid, inode.gid)
        elif (inode.uid, inode.gid) != (os.geteuid(), os.getegid()):
            report.once("owner", f"{show(path)} and others had other owners; only root can give files away")

    def set_xattrs(self, inode, path, where, follow):
        for name, value in inode.xattrs.items():
            if not hasattr(os, "setxattr"):
                report.once("xattr", "this system's Python cannot set extended attributes")
                return
            try:
                os.setxattr(where, name, value, **({} if follow else {"follow_symlinks": False}))
            except OSError as error:
                report.once(("xattr", name, error.errno),
                            f"{show(path)}: attribute {show(name)}, maybe of other files too: {error.strerror}")

    def set_times(self, inode, path, utime):
        times = tuple(secs * 1_000_000_000 + nanos for secs, nanos in (inode.atime, inode.mtime))
        try:
            utime(times)
        except (OSError, OverflowError) as error:
            report.once("time", f"{show(path)} and others have times that cannot be set here: {error}")


def show(name):
    return name.decode("utf-8", "backslashreplace")


def prepare(target, output):
    target, output = os.path.realpath(target), os.path.realpath(output)
    if os.path.commonpath([target, output]) in (target, output):
        raise Damaged("TARGET_DIR and OUTPUT_DIR must not lie in one another")
    os.makedirs(output, exist_ok=True)
    if os.listdir(output):
        raise Damaged(f"{output} is not empty")
    return target, output


def main():
    parser = argparse.ArgumentParser(
        description="Rebuild every file of a TandemFS filesystem from one target, without TandemFS.",
        epilog="Exit status: 0 everything restored; 1 nothing could be restored; 2 usage; 4 something is missing.",
    )
    parser.add_argument("target", metavar="TARGET_DIR", help="the folder that holds tandemfs.json")
    parser.add_argument("output", metavar="OUTPUT_DIR", help="an empty or new folder")
    parser.add_argument("--writer", metavar="EPOCH-ID", help="whose history counts, if two machines wrote at once")
    parser.add_argument("--keep-damaged", action="store_true", help="keep files that lost bytes, with holes there")
    args = parser.parse_args()
    try:
        if not shutil.which("zstd"):
            raise Damaged("the zstd command is needed")
        identity = read_identity(args.target)
        target, output = prepare(args.target, args.output)
        report.say(f"filesystem {identity['name']!r} ({identity['filesystem']}), target {identity['target_name']!r}")
        lineage = read_lineage(target, identity, args.writer)
        state, seq, replay_from = newest_state(target, identity, lineage)
        head = replay(target, identity, lineage, state, seq, replay_from)
        report.say(f"state as of change {head}: {len(state.inodes)} inodes")
        tree = Tree(target, state, output, bad_chunks(target, state), args.keep_damaged)
        tree.write()
    except (Damaged, OSError, KeyError, TypeError, ValueError) as error:
        print(f"error: {error if isinstance(error, (Damaged, OSError)) else repr(error)}", file=sys.stderr)
        return 1
    report.say(f"restored {tree.files} files, {tree.bytes} bytes")
    if blake3.unverified:
        report.say(f"NOT VERIFIED: the hashes of {blake3.unverified} objects, since neither b3sum nor the Python module "
                   "blake3 is here; only their lengths and how they name each other were checked")
    if report.problems:
        report.say(f"{report.problems} problems, see above: not everything is as it was")
        return 4
    return 0


if __name__ == "__main__":
    sys.exit(main())
