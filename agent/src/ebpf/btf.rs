//! Where facts lie in this kernel's structures, from its own type information.
//!
//! Format: Documentation/bpf/btf.rst. Anonymous members are looked into, because `task_struct` keeps most of
//! its fields in one when the kernel randomises layouts. What is not found stays [`MISSING`].

use callgate_common::TaskOffsets;
use callgate_common::config::MISSING;

const MAGIC: u16 = 0xeb9f;
const KIND_INT: u8 = 1;
const KIND_ARRAY: u8 = 3;
const KIND_STRUCT: u8 = 4;
const KIND_UNION: u8 = 5;
const KIND_ENUM: u8 = 6;
const KIND_FUNC_PROTO: u8 = 13;
const KIND_VAR: u8 = 14;
const KIND_DATASEC: u8 = 15;
const KIND_DECL_TAG: u8 = 17;
const KIND_ENUM64: u8 = 19;
/// Anonymous members nest no deeper than this in any kernel seen.
const MAX_DEPTH: u8 = 8;

/// The offsets that the kernel programs read at; all missing if `btf` can't be read.
pub(super) fn task_offsets(btf: &[u8]) -> TaskOffsets {
    Types::parse(btf).map_or(TaskOffsets::NONE, |types| types.offsets())
}

struct Types<'a> {
    /// Start of each type's record in `section`; type ids start at 1.
    records: Vec<usize>,
    section: &'a [u8],
    strings: &'a [u8],
}

impl<'a> Types<'a> {
    fn parse(btf: &'a [u8]) -> Option<Self> {
        if half(btf, 0)? != MAGIC {
            return None;
        }
        let header = word(btf, 4)? as usize;
        let part = |offset: usize| {
            let start = header.checked_add(word(btf, offset)? as usize)?;
            btf.get(start..start.checked_add(word(btf, offset + 4)? as usize)?)
        };
        let mut types = Self {
            records: Vec::new(),
            section: part(8)?,
            strings: part(16)?,
        };
        types.index()?;
        Some(types)
    }

    fn index(&mut self) -> Option<()> {
        let mut at = 0;
        while at < self.section.len() {
            self.records.push(at);
            let info = word(self.section, at + 4)?;
            let count = (info & 0xffff) as usize;
            at += 12
                + match kind(info) {
                    KIND_INT | KIND_VAR | KIND_DECL_TAG => 4,
                    KIND_ARRAY => 12,
                    KIND_STRUCT | KIND_UNION | KIND_DATASEC | KIND_ENUM64 => 12 * count,
                    KIND_ENUM | KIND_FUNC_PROTO => 8 * count,
                    _ => 0,
                };
        }
        Some(())
    }

    fn offsets(&self) -> TaskOffsets {
        let task = self.structure("task_struct");
        let offset = |of: Option<usize>, name| {
            of.and_then(|of| self.member(of, name, 0))
                .map_or(MISSING, |found| found.0)
        };
        TaskOffsets {
            group_leader: offset(task, "group_leader"),
            start_boottime: offset(task, "start_boottime"),
            self_exec_id: offset(task, "self_exec_id"),
            mm: offset(task, "mm"),
            exe_file: offset(self.structure("mm_struct"), "exe_file"),
            f_inode: offset(self.structure("file"), "f_inode"),
            i_ino: offset(self.structure("inode"), "i_ino"),
            i_sb: offset(self.structure("inode"), "i_sb"),
            s_dev: offset(self.structure("super_block"), "s_dev"),
            exec_id_size: task
                .and_then(|task| self.member(task, "self_exec_id", 0))
                .and_then(|(_, kind)| self.size(kind, 0))
                .unwrap_or(MISSING),
        }
    }

    fn structure(&self, name: &str) -> Option<usize> {
        self.records.iter().copied().find(|at| {
            word(self.section, at + 4).is_some_and(|info| kind(info) == KIND_STRUCT && info & 0xffff != 0)
                && self.is_named(*at, name)
        })
    }

    fn is_named(&self, at: usize, name: &str) -> bool {
        word(self.section, at)
            .and_then(|offset| self.strings.get(offset as usize..))
            .and_then(|text| text.strip_prefix(name.as_bytes()))
            .is_some_and(|rest| rest.first() == Some(&0))
    }

    /// Byte offset and type id of a member of the structure whose record is at `of`. Bit fields don't count.
    fn member(&self, of: usize, name: &str, depth: u8) -> Option<(u32, u32)> {
        let info = word(self.section, of + 4)?;
        if depth > MAX_DEPTH || !matches!(kind(info), KIND_STRUCT | KIND_UNION) {
            return None;
        }
        for index in 0..(info & 0xffff) as usize {
            let at = of + 12 + 12 * index;
            let (name_at, id, bits) = (
                word(self.section, at)?,
                word(self.section, at + 4)?,
                word(self.section, at + 8)?,
            );
            let is_bitfield = info >> 31 == 1 && bits >> 24 != 0;
            let bits = if info >> 31 == 1 { bits & 0xff_ffff } else { bits };
            if is_bitfield || bits % 8 != 0 {
                continue;
            }
            if self.is_named(at, name) {
                return Some((bits / 8, id));
            }
            if name_at == 0
                && let Some(inner) = self.record(id)
                && let Some((offset, id)) = self.member(inner, name, depth + 1)
            {
                return Some((bits / 8 + offset, id));
            }
        }
        None
    }

    fn record(&self, id: u32) -> Option<usize> {
        self.records.get((id as usize).checked_sub(1)?).copied()
    }

    /// Bytes of a scalar type, through typedefs and qualifiers.
    fn size(&self, id: u32, depth: u8) -> Option<u32> {
        const KIND_TYPEDEF: u8 = 8;
        const KIND_RESTRICT: u8 = 11;
        let at = self.record(id)?;
        let found = kind(word(self.section, at + 4)?);
        let last = word(self.section, at + 8)?;
        if found == KIND_INT {
            return Some(last);
        }
        if depth <= MAX_DEPTH && (KIND_TYPEDEF..=KIND_RESTRICT).contains(&found) {
            return self.size(last, depth + 1);
        }
        None
    }
}

fn kind(info: u32) -> u8 {
    (info >> 24 & 0x1f) as u8
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|chunk| u32::from_ne_bytes(*chunk))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|chunk| u16::from_ne_bytes(*chunk))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_type_information_gives_no_offset() {
        assert_eq!(task_offsets(b""), TaskOffsets::NONE);
        assert_eq!(
            task_offsets(&[0x9f, 0xeb, 1, 0, 24, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]),
            TaskOffsets::NONE
        );
    }

    #[test]
    fn this_kernels_offsets_are_found_where_it_has_type_information() {
        let Ok(btf) = std::fs::read("/sys/kernel/btf/vmlinux") else {
            return;
        };
        let offsets = task_offsets(&btf);
        assert_ne!(offsets.mm, MISSING);
        assert_ne!(offsets.start_boottime, MISSING);
        assert_ne!(offsets.s_dev, MISSING);
        assert!(matches!(offsets.exec_id_size, 4 | 8));
    }
}
