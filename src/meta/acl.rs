//! POSIX access control lists, as the kernel stores them in two extended attributes (acl(5)). Pure.
//!
//! Owns: their bytes, and how they and the mode's permission bits determine one another.
//! Does not own: checking access by them: the kernel does that.
//!
//! ```text
//! value = version u32 = 2, then entries of 8 bytes: tag u16, permissions u16, id u32; all little-endian
//! ```

use rustix::io::Errno;

/// The attribute with a file's own list.
pub const ACCESS: &[u8] = b"system.posix_acl_access";
/// The attribute with the list that new entries of a directory start from.
pub const DEFAULT: &[u8] = b"system.posix_acl_default";

const VERSION: u32 = 2;
const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// A well-formed list: one entry each for owner, group and others, a mask if anybody else is named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acl(Vec<Entry>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    tag: u16,
    permissions: u16,
    id: u32,
}

/// What a new inode gets from the default list of its directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inherited {
    /// The mode with its permission bits as the list allows them.
    pub mode: u32,
    /// The inode's own list, if it says more than the mode.
    pub access: Option<Acl>,
}

impl Acl {
    /// Reads the value of an attribute: `EINVAL` if it is not a well-formed list. An empty list is `None`.
    pub fn decode(value: &[u8]) -> Result<Option<Acl>, Errno> {
        let Some((version, entries)) = value.split_first_chunk::<4>() else { return Err(Errno::INVAL) };
        if u32::from_le_bytes(*version) != VERSION {
            return Err(Errno::OPNOTSUPP);
        }
        let (entries, rest) = entries.as_chunks::<8>();
        if !rest.is_empty() {
            return Err(Errno::INVAL);
        }
        let entries: Vec<Entry> = entries
            .iter()
            .map(|&[t0, t1, p0, p1, i0, i1, i2, i3]| Entry {
                tag: u16::from_le_bytes([t0, t1]),
                permissions: u16::from_le_bytes([p0, p1]),
                id: u32::from_le_bytes([i0, i1, i2, i3]),
            })
            .collect();
        if entries.is_empty() {
            return Ok(None);
        }
        let count = |tag: u16| entries.iter().filter(|entry| entry.tag == tag).count();
        let named = count(USER) + count(GROUP);
        let well_formed = [USER_OBJ, GROUP_OBJ, OTHER].iter().all(|&tag| count(tag) == 1)
            && count(MASK) <= 1
            && (named == 0 || count(MASK) == 1)
            && named + count(MASK) + 3 == entries.len()
            && entries.iter().all(|entry| entry.permissions <= 7);
        if well_formed { Ok(Some(Acl(entries))) } else { Err(Errno::INVAL) }
    }

    /// The value of an attribute.
    pub fn encode(&self) -> Vec<u8> {
        let mut value = Vec::with_capacity(4 + 8 * self.0.len());
        value.extend(VERSION.to_le_bytes());
        for entry in &self.0 {
            value.extend(entry.tag.to_le_bytes());
            value.extend(entry.permissions.to_le_bytes());
            value.extend(entry.id.to_le_bytes());
        }
        value
    }

    /// True if the list says no more than the nine permission bits can.
    pub fn is_minimal(&self) -> bool {
        self.0.len() == 3
    }

    /// The permission bits that `stat` shows for a file with this list: a mask stands for the group.
    pub fn permissions(&self) -> u32 {
        let of = |tag| u32::from(self.find(tag).permissions);
        of(USER_OBJ) << 6 | of(self.group_tag()) << 3 | of(OTHER)
    }

    /// The list after `chmod` to `mode`.
    pub fn with_permissions(&self, mode: u32) -> Acl {
        let mut acl = self.clone();
        let group = acl.group_tag();
        for (tag, bits) in [(USER_OBJ, mode >> 6), (group, mode >> 3), (OTHER, mode)] {
            acl.find_mut(tag).permissions = (bits & 7) as u16;
        }
        acl
    }

    /// What an inode created with `mode` gets from this default list; the umask plays no part then.
    pub fn inherit(&self, mode: u32) -> Inherited {
        let allowed = self.permissions();
        let mode = mode & !0o777 | mode & allowed & 0o777;
        let access = self.with_permissions(mode);
        Inherited { mode, access: (!access.is_minimal()).then_some(access) }
    }

    fn group_tag(&self) -> u16 {
        if self.0.iter().any(|entry| entry.tag == MASK) { MASK } else { GROUP_OBJ }
    }

    fn find(&self, tag: u16) -> &Entry {
        self.0.iter().find(|entry| entry.tag == tag).expect("a well-formed list has this entry")
    }

    fn find_mut(&mut self, tag: u16) -> &mut Entry {
        self.0.iter_mut().find(|entry| entry.tag == tag).expect("a well-formed list has this entry")
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Builds the value of an attribute from `(tag, permissions, id)`.
    pub(crate) fn value(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        Acl(entries.iter().map(|&(tag, permissions, id)| Entry { tag, permissions, id }).collect()).encode()
    }

    const NOBODY: u32 = u32::MAX;

    fn extended() -> Vec<u8> {
        value(&[(USER_OBJ, 7, NOBODY), (USER, 7, 1000), (GROUP_OBJ, 5, NOBODY), (MASK, 7, NOBODY), (OTHER, 0, NOBODY)])
    }

    #[test]
    fn a_list_without_owner_or_with_a_named_user_but_no_mask_is_refused() {
        for bad in [
            value(&[(GROUP_OBJ, 5, NOBODY), (OTHER, 0, NOBODY)]),
            value(&[(USER_OBJ, 7, NOBODY), (USER, 7, 1), (GROUP_OBJ, 5, NOBODY), (OTHER, 0, NOBODY)]),
            value(&[(USER_OBJ, 9, NOBODY), (GROUP_OBJ, 5, NOBODY), (OTHER, 0, NOBODY)]),
            value(&[(USER_OBJ, 7, NOBODY), (GROUP_OBJ, 5, NOBODY), (OTHER, 0, NOBODY), (0x40, 0, NOBODY)]),
            extended()[..20].to_vec(),
            vec![2, 0],
        ] {
            assert_eq!(Acl::decode(&bad), Err(Errno::INVAL), "{bad:?}");
        }
        assert_eq!(Acl::decode(&value(&[])), Ok(None));
        assert_eq!(Acl::decode(&extended()).unwrap().unwrap().encode(), extended());
    }

    #[test]
    fn the_mask_is_the_groups_bits_of_the_mode() {
        let acl = Acl::decode(&extended()).unwrap().unwrap();
        assert_eq!(acl.permissions(), 0o770);
        let narrowed = acl.with_permissions(0o640);
        assert_eq!(narrowed.permissions(), 0o640);
        assert_eq!((narrowed.find(GROUP_OBJ).permissions, narrowed.find(USER).permissions), (5, 7));
    }

    #[test]
    fn a_new_file_gets_what_both_the_default_list_and_its_mode_allow() {
        let acl = Acl::decode(&extended()).unwrap().unwrap();
        let Inherited { mode, access } = acl.inherit(libc::S_IFREG | 0o666);
        assert_eq!(mode, libc::S_IFREG | 0o660);
        assert_eq!(access.unwrap().permissions(), 0o660);

        let minimal = value(&[(USER_OBJ, 7, NOBODY), (GROUP_OBJ, 5, NOBODY), (OTHER, 4, NOBODY)]);
        let minimal = Acl::decode(&minimal).unwrap().unwrap();
        assert_eq!(minimal.inherit(0o4666), Inherited { mode: 0o4644, access: None });
    }
}
